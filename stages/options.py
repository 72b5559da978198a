"""Options that several commands share, and the conclusion of a stage. Light to import."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import StageReport, show_report
from codeseg.pipeline.engine.stage import Stage, state
from codeseg.pipeline.engine.storage import Storage

RayAddress = Annotated[
    str | None, typer.Option(help="Ray cluster to join: auto or host:6379 (default: this machine).")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Parallel workers (default: as many as fit).")
]
Gpus = Annotated[
    float, typer.Option(min=0, help="GPUs per worker (0.5 = two workers share one; 0 = CPU).")
]

Memory = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="GB of memory per worker, which limits the workers per node "
        "(default: the stage's usual need).",
    ),
]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Take the stage over from a run that is certainly dead; refuse its later commits.",
    ),
]
ClipModel = Annotated[
    str, typer.Option(help="open_clip model name, JSON config file, or storybook.")
]
ClipWeights = Annotated[
    str,
    typer.Option(help="Weights: a tag of the model, a .safetensors or .pt file, or storybook."),
]
Clip = Annotated[
    str | None,
    typer.Option(
        help="CLIP to use without a RUN (default: ViT-B-16, downloaded once; storybook: "
        "the embedded CLIP for drawings)."
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        help="Weights of the CLIP (default: openai; for storybook, its own). With a RUN: their new "
        "location, if they have moved."
    ),
]
VitWeights = Annotated[
    str | None,
    typer.Option(
        "--weights", help="New location of the weight file of an alignment's ViT, if it has moved."
    ),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Change a prediction setting: key=value.")
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        help='Things to find, such as "dog, red car, sofa/couch": a comma separates things, a '
        "slash separates names of one thing."
    ),
]
TextFile = Annotated[
    Path | None, typer.Option(help="File with things to find, for example one per line.")
]
Device = Annotated[str, typer.Option(help="Device: auto | cpu | cuda | mps.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Also write the result to this JSON file.")
]


def make_resources(
    ray_address: str | None,
    workers: int | None,
    gpus: float,
    memory: float | None,
    *,
    cpus: float = 1,
    take_over: bool = False,
) -> Resources:
    """Return the scheduler's form of the shared options."""
    size = None if memory is None else int(memory * 1e9)
    return Resources(workers, cpus, gpus, size, ray_address, take_over)


def prediction_settings(method: str | None, assignments: Sequence[str] | None) -> dict[str, Any]:
    """Return the settings given by --method and --set, for `Segmenter.open`."""
    from codeseg.model.override import parse_assignments

    return ({} if method is None else {"method": method}) | parse_assignments(assignments or [])


def conclude(root: Storage, stage: Stage, reports: Sequence[StageReport]) -> None:
    """Print what a stage did and the next command; exit with 1 if the stage did not succeed.

    A stage succeeds if no shard failed and its whole table holds at least one row.
    """
    for report in reports:
        show_report(report)
    records = Ledger(root).records(stage.table).values()
    if failed := sum(len(report.failed) for report in reports):
        fault = f"{failed} shards failed; rerun the same command to redo them"
    elif not any(record.rows_out for record in records):
        reasons: Counter[str] = Counter()
        for record in records:
            reasons.update(record.rejected)
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(3))
        fix = stage.empty if why else f"the previous stage kept none: codeseg status {root.uri}"
        fault = f"no row of {stage.table} was kept ({why or 'it had no input'}): {fix}"
    else:
        if waiting := len(state(root, stage).missing):
            typer.echo(f"{waiting} shards of {stage.table} are still missing: rerun this later")
        typer.echo(f"next: codeseg {stage.next.format(root.uri)}")
        return
    typer.echo(f"error: {fault}", err=True)
    raise typer.Exit(1)
