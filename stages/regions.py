"""`codeseg regions ROOT`: features/ -> regions/, and with --show a contact sheet."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from codeseg.model.regions.config import CLIP, Grouping
from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import REGIONS, state
from codeseg.pipeline.engine.storage import Storage, write_file
from codeseg.pipeline.regions.settings import RegionSettings, read_feature_settings, weights_sha256
from codeseg.stages import options

DEFAULTS = Grouping()


def regions(
    root: Annotated[str, typer.Argument(help="Dataset root with features.")],
    group_by: Annotated[
        str, typer.Option(help="Group by clip (the CLIP's own keys), storybook or a ViT of timm.")
    ] = CLIP,
    weights: Annotated[
        str | None, typer.Option(help="Weight file of that ViT, instead of the hub's.")
    ] = None,
    regions: Annotated[
        int, typer.Option(min=1, max=256, help="Maximum number of regions per picture (K).")
    ] = DEFAULTS.regions,
    method: Annotated[
        str, typer.Option(help="Clustering: kmeans, or spectral (normalized cut, slower).")
    ] = DEFAULTS.method,
    min_patches: Annotated[
        int, typer.Option(min=1, help="Merge smaller regions into their most similar neighbor.")
    ] = DEFAULTS.min_patches,
    seed: Annotated[int, typer.Option(help="Seed of the clustering.")] = DEFAULTS.seed,
    show: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet of pictures and regions to this PNG file."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures on the contact sheet.")] = 24,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0,
    memory: options.Memory = None,
    take_over: options.TakeOver = False,
) -> None:
    """Group each picture's patches into part-like, connected regions (SCG).

    Rerun to resume: only missing or stale shards are redone. Training with SCG reads
    the regions: codeseg train ROOT RUN --recipe scg_vitb16
    """
    settings = RegionSettings(
        group_by=group_by,
        weights=None if weights is None else str(Path(weights).absolute()),
        weights_sha256=weights_sha256(weights),
        grouping=Grouping(method, regions, min_patches, seed),  # type: ignore[arg-type]  # checked
    )
    storage = Storage.open(root)
    resources = options.make_resources(ray_address, workers, gpus, memory, take_over=take_over)
    report = run_regions(storage, settings, resources)
    if show is not None and not report.failed:
        write_sheet(storage, show, pictures)
        typer.echo(f"contact sheet: {show}")
    options.conclude(storage, REGIONS, [report])


def run_regions(root: Storage, settings: RegionSettings, resources: Resources) -> StageReport:
    """Group the pending shards; the number of views comes from the features' settings."""
    from codeseg.pipeline.regions.worker import RegionsWorker

    views = read_feature_settings(root).views
    settings = replace(settings, views=views)
    todo = state(root, REGIONS, settings=settings.fingerprint())
    features = Ledger(root).records("features")
    rows = {shard: record.rows_out * views for shard, record in features.items()}
    made = asdict(settings)
    return run_stage(REGIONS, RegionsWorker, root, made, todo, made, resources, rows)


def write_sheet(root: Storage, file: Path, pictures: int) -> None:
    """Write a contact sheet of the first pictures that have regions, or refuse if none have."""
    from codeseg.pipeline.regions.sheet import contact_sheet, first_pictures

    sheet = contact_sheet(first_pictures(root, pictures))
    write_file(file, lambda sink: sheet.save(sink, "PNG"))
