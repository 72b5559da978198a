"""`codeseg export [RUN] --out FILE.onnx`: a segmenter's networks for programs without codeseg.

FILE.onnx   or FILE.pt2: the graph of model/export.py, checked against the segmenter
FILE.json   how to run it: sizes, mean and deviation, inputs, settings, texts, agreement
FILE.npz    `classes` and `templates`, float32 (K, C): the embeddings of the given texts
"""

import io
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from codeseg.pipeline.engine.storage import Storage, write_json
from codeseg.stages import options
from codeseg.stages.segment import wanted_words

if TYPE_CHECKING:
    from torch import Tensor

    from codeseg.model.inference.segmenter import Segmenter

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SUFFIXES = (".onnx", ".pt2")


def export(
    run: Annotated[
        str | None,
        typer.Argument(help="RUN, checkpoint or hub id (default: a CLIP alone, untrained)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="FILE.onnx, or FILE.pt2 for torch.export.")] = Path(
        "segmenter.onnx"
    ),
    text: options.Text = None,
    text_file: options.TextFile = None,
    classes_from: Annotated[
        str | None, typer.Option(help="Export the texts of a benchmark's classes: voc, ade20k …")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="code | align | maskclip | sclip | clearclip | naclip.")
    ] = None,
    clip: options.Clip = None,
    pretrained: options.Pretrained = None,
    weights: options.VitWeights = None,
    assignments: options.Assignments = None,
) -> None:
    """Export a segmenter's image branch as ONNX, for any picture size and number of texts.

    A file that differs from the segmenter by more than 1e-4 is not kept.
    Example: codeseg export runs/code --out segmenter.onnx --text "red car" --text dog
    """
    check_output(out)
    from codeseg.model.export import SegmenterNetworks
    from codeseg.model.inference.segmenter import Segmenter

    console = Console(soft_wrap=True, highlight=False)
    asked = text or text_file or classes_from
    things = wanted_words(text, text_file, classes_from) if asked else ()
    texts = [name for thing in things for name in thing]  # the graph has a mask for every name
    # PAMR is not a network: it is off by default, and SegmenterNetworks refuses it.
    settings = {"refinement": "none"} | ({} if run else {"method": "naclip"})
    settings |= options.prediction_settings(method, assignments)
    segmenter = Segmenter.open(
        run, settings, clip=clip, pretrained=pretrained, weights=weights, device="cpu"
    )
    networks = SegmenterNetworks(segmenter)  # refuses methods that are no networks
    embeddings = networks.named(segmenter.embed_texts(texts)) if texts else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        made = Path(folder) / out.name
        agreement = write_checked(console, segmenter, made)
        if agreement is None:
            raise typer.Exit(1)
        about = describe(segmenter, texts) | {"inputs": networks.inputs, "agreement": agreement}
        publish(out, made, embeddings, about)
    beside = " and ".join(f"{out.stem}{end}" for end in (".json", ".npz")[: 1 + bool(texts)])
    console.print(f"{out}, with {beside} beside it")


def check_output(out: Path) -> None:
    """Refuse an unknown suffix, or a missing package, before anything is loaded."""
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: name it {' or '.join('FILE' + s for s in SUFFIXES)}")
    for name in ONNX_PACKAGES if out.suffix == ".onnx" else ():
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def write_checked(console: Console, segmenter: "Segmenter", path: Path) -> dict[str, Any] | None:
    """Write the graph, run it, and print how it compares with the segmenter.

    Return the measurements, or None if the two differ too much.
    """
    import torch

    from codeseg.model import export, export_check

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
        program = export.trace(segmenter)
        if path.suffix == ".onnx":
            export.write_onnx(program, path)
            engine, exported = "onnxruntime", export_check.open_onnx(path)
        else:
            torch.export.save(program, path)
            engine, exported = "torch.export", export_check.open_torch(path)
    sizes, patch = export_check.grids(segmenter), segmenter.clip.patch_size
    difference = export_check.largest_difference(segmenter, exported, sizes)
    agrees = difference <= export_check.TOLERANCE
    listed = ", ".join(f"{h * patch}×{w * patch}" for h, w in sizes)
    console.print(
        f"largest difference from eager {difference:.1e} ({'within' if agrees else 'OVER'} "
        f"{export_check.TOLERANCE:.0e}) at {listed} pixels with "
        f"{' and '.join(map(str, export_check.TEXTS))} texts"
    )
    if not agrees:
        return None
    eager, other = export_check.milliseconds(segmenter, exported, sizes[-1])
    threads = torch.get_num_threads()
    side = f"{sizes[-1][0] * patch}×{sizes[-1][1] * patch}"
    console.print(
        f"an image of {side}: eager {eager:.0f} ms, {engine} {other:.0f} ms, "
        f"{threads} CPU threads each"
    )
    return {
        "largest_difference": difference,
        "image": side,
        "threads": threads,
        "milliseconds": {"eager": eager, engine: other},
    }


def describe(segmenter: "Segmenter", texts: list[str]) -> dict[str, Any]:
    """Return the information that a program needs to run the file."""
    from codeseg.model.export import OUTPUTS
    from codeseg.stages.training.run import codeseg_version

    clip = segmenter.clip
    return {
        "codeseg": codeseg_version(),
        "clip": {"model": clip.name, "pretrained": clip.pretrained},
        "outputs": OUTPUTS,
        "patch_size": clip.patch_size,
        "mean": clip.mean.flatten().tolist(),
        "std": clip.std.flatten().tolist(),
        "settings": segmenter.settings.record(),
        "texts": texts,
    }


def publish(
    out: Path, made: Path, embeddings: dict[str, "Tensor"], description: dict[str, Any]
) -> None:
    """Write the files atomically into place, the graph last."""
    folder = Storage.open(out.parent)
    if embeddings:
        packed = io.BytesIO()
        arrays: dict[str, Any] = {name: value.numpy() for name, value in embeddings.items()}
        np.savez(packed, **arrays)
        folder.write_atomic(out.with_suffix(".npz").name, packed.getvalue())
    write_json(out.with_suffix(".json"), description)
    with made.open("rb") as file:
        folder.write_atomic(out.name, lambda sink: shutil.copyfileobj(file, sink))
