"""`codeseg demo`: the whole pipeline on the embedded storybook, by the commands a user would run.

In: only this package. Out, in OUT (default demo-run):
    world/                  in place of the web: drawn pictures, a URL list, two benchmarks
    data/                   the dataset root: pairs, nouns, vocabulary, features, ledger
    runs/{baseline,code}/   two trained RUNs
    evaluation/BENCHMARK/METHOD/   predicted label maps and their scores
    segments/               held-out pictures segmented by chosen words
    audit.json  results.json  report.html
Every step resumes, so the same command completes an interrupted demo.
"""

import contextlib
import ctypes
import functools
import http.server
import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from codeseg.pipeline.engine.storage import write_json
from codeseg.stages.options import JsonFile

RECIPES = {"baseline": "storybook_baseline", "code": "storybook"}
METHODS = {"maskclip": "MaskCLIP, no training", "baseline": "baseline", "code": "CoDe"}
BENCHMARKS = ("storybook_things", "storybook_scenes")
WORDS = ("blue house", "red flower", "yellow car", "blue umbrella", "white cat", "green grass")
PICTURES = ("000000", "000008", "000012", "000019")  # of the last benchmark, for these words
VIEWS = 2
PORT = 8377  # URLs are data: with a fixed port, two demos write the same tables


@dataclass(frozen=True)
class Size:
    """The size of a demo."""

    scenes: int  # captioned pictures
    shard_size: int  # rows per shard
    benchmark_scenes: int  # held-out scenes of each benchmark
    train: tuple[str, ...] = ()  # options added to the train commands


FULL = Size(scenes=2000, shard_size=512, benchmark_scenes=200)
QUICK = Size(
    scenes=240,
    shard_size=64,
    benchmark_scenes=12,
    train=("--set", "train.steps=8", "--set", "train.checkpoint_every=2"),
)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A file server that logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path(
        "demo-run"
    ),
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Do a tenth of the work, to see that everything runs, not how well."
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Loopback port that serves the pictures.")
    ] = PORT,
    json_file: JsonFile = None,
) -> None:
    """Run the whole pipeline on generated pictures; end with a table of mIoU and a report.

    The first run takes about ten minutes on two cores. Rerun to resume an interrupted demo, or to
    show the results in seconds.
    """
    started = time.monotonic()
    world, data = out / "world", out / "data"
    size = QUICK if quick else FULL
    draw_world(world, port, size)
    with serving(world / "images", port):
        run_command(
            *("download", "storybook", data, "--urls", world / "urls.tsv"),
            *("--shard-size", size.shard_size, "--allow-private-hosts"),
        )
    run_command("nouns", data)
    run_command(
        *("features", data, "--clip", "storybook", "--pretrained", "storybook"),
        *("--image-tokens", "fp16", "--views", VIEWS),
    )
    for method, recipe in RECIPES.items():
        run_command("train", data, out / "runs" / method, "--recipe", recipe, *size.train)
    if not is_scored(out):
        for benchmark in BENCHMARKS:
            for method in METHODS:
                evaluate_method(out, benchmark, method)
        segment_pictures(out)
        run_command("audit", data, "--json", out / "audit.json")
        run_command("report", out)
        write_json(out / "results.json", collect(out))
    results = json.loads((out / "results.json").read_text())
    if json_file:
        write_json(json_file, results)
    show(results)
    typer.echo(f"{out / 'report.html'} in {time.monotonic() - started:.0f} s")


def draw_world(world: Path, port: int, size: Size) -> None:
    """Draw the pictures and benchmarks once; the URL list, written last, marks them complete.

    Refuse a world that was drawn at another size or for another port.
    """
    from codeseg.pipeline.storybook import scenes as storybook

    begun = world / "begun.json"
    asked = {"port": port, "scenes": size.scenes}
    if begun.exists() and (found := json.loads(begun.read_text())) != asked:
        raise ValueError(
            f"{world.parent} was begun with port {found['port']} and {found['scenes']} scenes, not "
            f"port {port} and {size.scenes}: repeat its options or choose another --out"
        )
    if (world / "urls.tsv").exists():
        return
    world.mkdir(parents=True, exist_ok=True)
    write_json(begun, asked)
    typer.echo(f"drawing {size.scenes} captioned scenes and two benchmarks in {world}")
    captions = storybook.write_world(world / "images", size.scenes)
    for name in BENCHMARKS:
        storybook.write_benchmark(world / name, name, size.benchmark_scenes)
    storybook.write_url_list(world / "urls.tsv", f"http://127.0.0.1:{port}", captions)


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Serve a folder on loopback while the block runs; refuse a port that is taken."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise ValueError(
            f"port {port} of this machine is taken ({error.strerror}); "
            "choose another with --port and a new --out"
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def die_with_parent() -> None:
    """End this child when the demo is killed, even by -9, so that two demos never write at once.

    Linux only (PR_SET_PDEATHSIG = 1): elsewhere, the command of a killed demo runs to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run_command(*arguments: str | int | Path) -> None:
    """Run one `codeseg` command as a user would; exit with its code if it fails."""
    words = [str(argument) for argument in arguments]
    typer.secho(f"\n$ codeseg {shlex.join(words)}", bold=True)
    sys.stdout.flush()
    command = [sys.executable, "-m", "codeseg", *words]
    done = subprocess.run(command, check=False, preexec_fn=die_with_parent)
    if done.returncode:
        typer.secho(
            "the demo stops here; fix the error above and rerun the same command to resume",
            err=True,
        )
        raise typer.Exit(done.returncode if done.returncode > 0 else 1)


def is_scored(out: Path) -> bool:
    """Return whether results.json, the last file written, is newer than every checkpoint."""
    results = out / "results.json"
    models = out.glob("runs/*/checkpoints/*/model.safetensors")
    return results.exists() and all(
        path.stat().st_mtime < results.stat().st_mtime for path in models
    )


def evaluate_method(out: Path, benchmark: str, method: str) -> None:
    """Predict and score one method on one benchmark."""
    model = ["--method", method] if method == "maskclip" else [str(out / "runs" / method)]
    run_command(
        *("evaluate", *model, "--benchmark", benchmark),
        *("--data", out / "world" / benchmark, "--out", out / "evaluation" / benchmark / method),
    )


def segment_pictures(out: Path) -> None:
    """Segment some held-out pictures by chosen words, as a user would segment photos."""
    images = out / "world" / BENCHMARKS[-1] / "images"
    found = [path for name in PICTURES if (path := images / f"{name}.png").exists()]
    words = [word for text in WORDS for word in ("--text", text)]
    run = ("--run", out / "runs" / "code")
    run_command("segment", *found, *words, *run, "--out", out / "segments", "--overwrite")


def collect(out: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Read every score: {benchmark: {method: {"miou": …, "per_class": {…}}}}, in percent."""

    def scores(place: Path) -> dict[str, Any]:
        found = json.loads((place / "scores.json").read_text())
        return {key: found[key] for key in found if key in ("miou", "per_class")}

    folder = out / "evaluation"
    return {name: {m: scores(folder / name / m) for m in METHODS} for name in BENCHMARKS}


def show(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print the table of mIoU."""
    table = Table("mIoU, %", *BENCHMARKS, title="storybook, held-out scenes")
    for method, title in METHODS.items():
        table.add_row(title, *(f"{results[name][method]['miou']:.1f}" for name in BENCHMARKS))
    Console().print(table)
