"""`codeseg select ROOT NAME --where "SQL"`: features/ -> selections/NAME.arrow, rows to use."""

from pathlib import Path
from typing import Annotated

import typer


def select(
    root: Annotated[str, typer.Argument(help="Dataset root with features: a folder or s3://…")],
    name: Annotated[str, typer.Argument(help="Name of the selection to write.")],
    where: Annotated[
        str,
        typer.Option(
            help="Keep the pairs that satisfy this SQL condition on the columns of `trainable`; "
            "subqueries may use any view in docs/audit.md."
        ),
    ] = "true",
    top: Annotated[
        tuple[str, float] | None,
        typer.Option(
            metavar="COLUMN SHARE", help="Of these, keep the share with the highest values."
        ),
    ] = None,
    sample: Annotated[float, typer.Option(help="Of these, keep about this share at random.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of --sample.")] = 0,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Benchmark whose images to find in the data (`near_benchmark`)."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="That benchmark's data folder; one for each --benchmark."),
    ] = None,
) -> None:
    """Select the pairs to train on by SQL, for `train ROOT RUN --set train.selection=NAME`.

    The selection lists row numbers; it copies no data. Rerun after the features have changed.
    """
    from rich.console import Console
    from rich.table import Table

    from codeseg.pipeline.audit.database import Audit
    from codeseg.pipeline.audit.selection import Condition, choose, write_selection
    from codeseg.pipeline.audit.views import AuditOptions
    from codeseg.pipeline.engine.ledger import Ledger
    from codeseg.pipeline.engine.storage import Storage
    from codeseg.pipeline.stream.selection import selection_path
    from codeseg.stages.audit import benchmark_folders

    selection_path(name)  # refuses a bad name before the work
    condition = Condition(where, top, sample, seed)
    condition.sql()
    storage = Storage.open(root)
    features = Ledger(storage).records("features")
    if not features:
        raise FileNotFoundError(f"{root} holds no features; run `codeseg features {root}` first")
    options = AuditOptions(pictures=0, benchmarks=benchmark_folders(benchmark or [], data or []))
    with Audit(storage, options) as audit:
        chosen = choose(audit, condition, list(features))
    path = write_selection(storage, name, chosen, condition.sql(), features)
    table = Table("", "before", "kept", "share", box=None, pad_edge=False)
    for figure, before in chosen.before.items():
        kept = chosen.after[figure]
        table.add_row(figure, f"{before:,}", f"{kept:,}", f"{kept / max(before, 1):.1%}")
    Console().print(table)
    typer.echo(f"{root}/{path}\nnext: codeseg train {root} RUN --set train.selection={name}")
