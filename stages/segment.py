"""Pictures + words -> for each picture: overlay with legend, label map, soft masks; one JSON.

OUT/NAME/overlay.png    the picture, regions painted and outlined, legend
OUT/NAME/label.png      8-bit palette PNG: 0 background (or the first text), 1 … the texts
OUT/NAME/mask-TEXT.png  soft mask of a text, grey 0..255; of a benchmark's classes those found
OUT/segments.json       areas (share of the picture) and scores (highest mask value)
"""

import re
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from codeseg.model.pictures.header import OWN_ENDINGS
from codeseg.model.pictures.overlay import OPACITY, Colour, colours, overlay, with_legend
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.pipeline.benchmark.predictions import palette_image
from codeseg.pipeline.engine.storage import write_json
from codeseg.stages.options import (
    Clip,
    Device,
    Pretrained,
    Text,
    TextFile,
    prediction_settings,
)
from codeseg.stages.progress import progress

if TYPE_CHECKING:
    from codeseg.model.inference.segmenter import Segmentation
    from codeseg.model.inference.vocabulary import Thing
    from codeseg.model.pictures.pixels import Pixels

BACKGROUND: Colour = (0, 0, 0)


def segment(
    images: Annotated[list[str], typer.Argument(help="Images, folders or globs.")],
    text: Text = None,
    text_file: TextFile = None,
    classes_from: Annotated[
        str | None, typer.Option(help="Look for a benchmark's classes: voc, ade20k …")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="RUN, checkpoint or hub id; none: the embedded CLIP, untrained."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("segments"),
    method: Annotated[
        str | None, typer.Option(help="code | maskclip | sclip | clearclip | naclip.")
    ] = None,
    clip: Clip = None,
    pretrained: Pretrained = None,
    background: Annotated[
        bool, typer.Option(help="Leave out what no text scores above the threshold.")
    ] = True,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="A prediction setting, key=value.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Segment pictures by any words.

    Example: codeseg segment photo.jpg --text "dog, red car, sofa/couch" --run runs/code
    """
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import rgb_pixels

    console = Console()
    things = wanted_words(text, text_file, classes_from)
    paths = find_images(images)
    segmenter = Segmenter.open(
        run,
        prediction_settings(method, assignments),
        clip=clip,
        pretrained=pretrained,
        device=device,
    )
    palette, named = colours(len(things)), 0 if classes_from else len(things)
    folders = dict(zip(map(str, paths), folder_names(paths), strict=True))
    rows: list[dict[str, Any]] = []
    for name in progress(list(folders), "segmenting", console):
        try:
            pixels = rgb_pixels(name)
        except (ValueError, FileNotFoundError) as error:
            rows.append({"image": name, "error": str(error)})
            continue
        result = segmenter.segment(pixels, things, background=background)
        row = write_result(out / folders[name], pixels, result, palette, named)
        rows.append({"image": name, **row})
    write_json(out / "segments.json", {"method": segmenter.settings.method, "images": rows})
    show(console, rows, out)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def wanted_words(
    text: Sequence[str] | None, text_file: Path | None, classes_from: str | None
) -> tuple["Thing", ...]:
    """Return the things to look for: those of --text, of --text-file, a benchmark's classes.

    Raises:
        ValueError: there are none, or one is named twice.
        FileNotFoundError: there is no such file.
    """
    from codeseg.model.inference.vocabulary import read_words

    typed: list[str | tuple[str]] = list(text or [])
    if text_file:
        typed += text_file.expanduser().read_text(encoding="utf-8").splitlines()
    if classes_from:
        typed += [(name,) for name in load_benchmark(classes_from).texts if name not in typed]
    if not typed:
        raise ValueError('say what to look for: --text "dog, red car", or --classes-from voc')
    return read_words(typed)


def find_images(given: Sequence[str]) -> list[Path]:
    """Files named, files of folders named, and files that match globs, in that order.

    Raises:
        FileNotFoundError: nothing is there.
    """
    found = [path for name in given for path in _expand(name)]
    if not found:
        raise FileNotFoundError(f"no image in {', '.join(given)}")
    return list(dict.fromkeys(found))


def _expand(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from sorted(p for p in path.iterdir() if p.suffix.lower() in OWN_ENDINGS)
    elif not path.exists() and has_magic(name):
        yield from sorted(Path(p) for p in glob(name, recursive=True) if Path(p).is_file())
    else:
        yield path


def folder_names(paths: Sequence[Path]) -> list[str]:
    """A folder name for each image's results: its stem, numbered where stems repeat."""
    taken: dict[str, int] = {}
    names = []
    for path in paths:
        count = taken[path.stem] = taken.get(path.stem, 0) + 1
        names.append(path.stem if count == 1 else f"{path.stem}-{count}")
    return names


def write_result(
    folder: Path,
    pixels: "Pixels",
    result: "Segmentation",
    palette: Sequence[Colour],
    named: int,
    opacity: float = OPACITY,
) -> dict[str, Any]:
    """Write one picture's files; return its row of segments.json.

    Args:
        folder: for the files.
        pixels: of the picture.
        result: what was found.
        palette: a colour a text.
        named: so many of the first texts get a soft mask in any case, the others where found.
        opacity: of the paint, 0..1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shift = len(result.texts) - len(result.scores)  # 1 where there is a background
    painted = [None] * shift + list(palette)
    counts = np.bincount(result.label_map.ravel(), minlength=len(result.texts))
    areas = counts / result.label_map.size
    legend = [
        (f"{text} {area:.0%}", colour or BACKGROUND)
        for text, area, colour in zip(result.texts, areas, painted, strict=True)
        if area > 0
    ]
    painting = overlay(pixels, result.label_map, painted, opacity)
    with_legend(painting, legend).save(folder / "overlay.png")
    stored = [colour or BACKGROUND for colour in painted]
    palette_image(result.label_map, stored).save(folder / "label.png")
    segments = []
    for k, (text, score) in enumerate(zip(result.texts[shift:], result.scores, strict=True)):
        area, name = float(areas[k + shift]), None
        if k < named or area > 0:
            plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
            name = f"mask-{k + 1:03d}-{plain}.png"
            grey = np.rint(result.masks[k] * 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / name)
        segments.append({"text": text, "area": area, "score": float(score), "mask": name})
    height, width = result.label_map.shape
    return {"folder": folder.name, "width": width, "height": height, "segments": segments}


def show(console: Console, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Print a line a picture: the texts that were found, largest first."""
    for row in rows:
        if "error" in row:
            console.print(f"failed: {row['error']}", markup=False, soft_wrap=True)
            continue
        found = sorted((s for s in row["segments"] if s["area"] > 0), key=lambda s: -s["area"])
        parts = [f"{s['text']} {s['area']:.0%} (score {s['score']:.2f})" for s in found]
        line = f"{row['image']}: {', '.join(parts) or 'nothing found'}"
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    console.print(f"results in {out}", markup=False, soft_wrap=True)
