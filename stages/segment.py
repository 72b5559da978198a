"""`codeseg segment`: pictures + words -> each picture's segments, in files for other programs.

model/results/files.py describes the files in OUT.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from codeseg.model.pictures.header import OWN_ENDINGS
from codeseg.pipeline.benchmark.manifest import load_benchmark
from codeseg.stages import options
from codeseg.stages.terminal import progress

if TYPE_CHECKING:
    from codeseg.model.inference.vocabulary import Thing
    from codeseg.model.pictures.pixels import Pixels


def segment(
    images: Annotated[list[str], typer.Argument(help="Image files, folders or globs.")],
    text: options.Text = None,
    text_file: options.TextFile = None,
    classes_from: Annotated[
        str | None, typer.Option(help="Segment a benchmark's classes: voc, ade20k …")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="RUN, checkpoint or hub id (default: a CLIP alone).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("segments"),
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="png | coco | yolo, or several (default: png)."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="code | align | maskclip | sclip | clearclip | naclip …")
    ] = None,
    clip: options.Clip = None,
    pretrained: options.Pretrained = None,
    weights: options.VitWeights = None,
    background: Annotated[
        bool, typer.Option(help="Leave pixels unlabeled where no text scores above the threshold.")
    ] = True,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Threshold for --background.")
    ] = None,
    assignments: options.Assignments = None,
    device: options.Device = "auto",
) -> None:
    """Segment pictures by any words.

    Example: codeseg segment photo.jpg --text "dog, red car, sofa/couch"
    """
    from codeseg.model.inference.segmenter import Segmenter
    from codeseg.model.pictures.pixels import rgb_pixels
    from codeseg.model.results.files import ResultFolder

    console = Console(markup=False, highlight=False, soft_wrap=True)
    things = wanted_words(text, text_file, classes_from, background)
    images, chosen = split_formats(images, formats)
    paths = find_images(images)
    settings = options.prediction_settings(method, assignments)
    if threshold is not None:
        # Each applies to one kind of score: sigmoid or softmax.
        settings |= {f"{kind}_threshold": str(threshold) for kind in ("background", "probability")}
    places = dict(zip(map(str, paths), folder_names(paths), strict=True))
    names, opened = [thing[0] for thing in things], deque[str]()
    with ResultFolder(out, names, chosen, list(places.values()), overwrite=overwrite) as folder:
        segmenter = Segmenter.open(
            run, settings, clip=clip, pretrained=pretrained, weights=weights, device=device
        )
        settings = segmenter.settings.record()
        folder.about = {"method": settings["method"], "clip": segmenter.clip.name}
        folder.about["settings"] = settings

        def pictures() -> Iterator["Pixels"]:
            for name in progress(list(places), "segmenting", console):
                try:
                    pixels = rgb_pixels(name)
                except (ValueError, FileNotFoundError) as error:
                    folder.refuse(name, str(error))
                    console.print(f"failed: {error}")
                    continue
                opened.append(name)
                yield pixels

        for result in segmenter.segment_many(pictures(), things, background=background):
            name = opened.popleft()
            folder.add(places[name], name, result, every=classes_from is None)
            found = ", ".join(map(repr, result.found())) or "nothing found"
            console.print(f"{name}: {found}")
    console.print(f"results in {folder.root}")
    if any("error" in row for row in folder.rows):
        raise typer.Exit(1)


def wanted_words(
    text: Sequence[str] | None,
    text_file: Path | None,
    classes_from: str | None,
    background: bool = False,
) -> tuple["Thing", ...]:
    """Return the things to find: those of --text, of --text-file, then a benchmark's classes.

    Refuse a command without things, and a name that occurs twice.
    """
    from codeseg.model.inference.vocabulary import read_words

    typed: list[str | tuple[str]] = list(text or [])
    if text_file:
        typed += text_file.expanduser().read_text(encoding="utf-8").splitlines()
    if classes_from:
        typed += [(name,) for name in load_benchmark(classes_from).texts if name not in typed]
    if not typed:
        raise ValueError('name the things to find: --text "dog, red car", or --classes-from voc')
    return read_words(typed, background)


def split_formats(images: list[str], formats: list[str] | None) -> tuple[list[str], list[str]]:
    """Separate pictures from formats: with `--format png coco`, coco arrives among the pictures.

    Refuse a name that may be either.
    """
    from codeseg.model.results.files import PACKAGES

    if formats is None:
        return images, ["png"]
    more = [name for name in images if name in PACKAGES]
    for name in more:
        if Path(name).exists():
            raise ValueError(
                f"{name} is a format and also a file: write ./{name}, or --format png,{name}"
            )
    chosen = [name.strip() for each in formats for name in each.split(",")]
    return [name for name in images if name not in more], chosen + more


def find_images(given: Sequence[str]) -> list[Path]:
    """Return the named files, those in named folders and those that match globs, in order.

    Raise FileNotFoundError if there are none or a named file is missing, and PermissionError if a
    file may not be read.
    """
    found = list(dict.fromkeys(path for name in given for path in _expand(name)))
    if not found:
        raise FileNotFoundError(f"no image in {', '.join(given) or 'the command'}")
    for path in found:
        if not path.exists():
            raise FileNotFoundError(f"there is no picture {path}: check the name and the folder")
        path.open("rb").close()  # raises PermissionError
    return found


def _expand(name: str) -> Iterator[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        yield from sorted(p for p in path.iterdir() if p.suffix.lower() in OWN_ENDINGS)
    elif not path.exists() and has_magic(name):
        matching = glob(str(path), recursive=True)
        yield from sorted(Path(p) for p in matching if Path(p).is_file())
    else:
        yield path


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Return a folder name for each image's results: its stem, numbered where stems repeat."""
    taken: dict[str, int] = {}
    names = []
    for path in paths:
        count = taken[path.stem] = taken.get(path.stem, 0) + 1
        names.append(path.stem if count == 1 else f"{path.stem}-{count}")
    return names
