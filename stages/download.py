"""`codeseg download MANIFEST ROOT`: a URL list or existing pictures -> urls/, pairs/."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from codeseg.pipeline.download.fetch import FetchLimits
from codeseg.pipeline.download.folders import PictureFolder, PictureParquet
from codeseg.pipeline.download.pairs import DownloadSettings, DownloadWorker, worth_retrying
from codeseg.pipeline.download.ready import ReadyWorker, Source
from codeseg.pipeline.download.tars import Tars
from codeseg.pipeline.download.urls import cut_shards
from codeseg.pipeline.engine.cluster import Resources, fit_workers, most_workers, ray_session
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.lock import StageLock
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import PAIRS, StageState, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.manifests import Manifest, load_manifest
from codeseg.stages import options

DEFAULTS = DownloadSettings()


def download(
    manifest: Annotated[
        str, typer.Argument(help="Name of a dataset (cc3m, cc12m) or a manifest's .toml file.")
    ],
    root: Annotated[
        str, typer.Argument(help="Dataset root, new or existing: a folder or s3:// URI.")
    ],
    urls: Annotated[
        str | None, typer.Option(help="URL list to use instead of the manifest's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N rows of the list.")
    ] = None,
    shard_size: Annotated[
        int, typer.Option(min=2, help="Rows per shard, which is the unit of work and of commits.")
    ] = DEFAULTS.shard_size,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Resize so that the shorter side is at most this many pixels "
            "(default: the manifest's).",
        ),
    ] = None,
    min_size: Annotated[
        int,
        typer.Option(min=1, help="Reject pictures whose shorter side is below this many pixels."),
    ] = DEFAULTS.min_size,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Retry rows that failed by DNS, timeout, connection or server error.",
        ),
    ] = False,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            help="Also fetch from private and loopback addresses, without rate limits (for tests).",
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Concurrent fetches in each worker.")
    ] = DEFAULTS.threads,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Time limit for one URL in seconds, redirects and retries included."
        ),
    ] = FetchLimits.deadline,
    success_floor: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse a shard with a smaller share of successes.")
    ] = DEFAULTS.success_floor,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0,
    memory: options.Memory = None,
    take_over: options.TakeOver = False,
) -> None:
    """Download the images of a dataset; failed rows are kept with their reason.

    Rerun to resume: only missing or stale shards are redone. Next: codeseg nouns ROOT
    """
    source = load_manifest(manifest)
    settings = DownloadSettings(
        image_size=image_size or source.image_size,
        shard_size=shard_size,
        min_size=min_size,
        threads=threads,
        deadline=timeout,
        success_floor=success_floor,
        allow_private=allow_private_hosts,
        retry_failed=retry_failed,
    )
    storage = Storage.open(root)
    resources = options.make_resources(ray_address, workers, gpus, memory, take_over=take_over)
    report = run_download(source, storage, settings, resources, urls=urls, limit=limit)
    if not retry_failed and (again := _worth_another_try(storage, allow_private_hosts)):
        typer.echo(f"pairs: {again:,} failed rows may succeed now: retry them with --retry-failed")
    options.conclude(storage, PAIRS, [report])


def run_download(
    manifest: Manifest,
    root: Storage,
    settings: DownloadSettings,
    resources: Resources,
    *,
    urls: str | None = None,
    limit: int | None = None,
) -> StageReport:
    """Divide a list into shards and download the pending ones.

    The list is at `urls`, or else where the manifest says; `limit` is its number of rows to use.
    """
    place = _absolute(urls or manifest.url_list)
    fingerprint = settings.fingerprint()
    resolved = {**asdict(settings), "manifest": manifest.name, "fingerprint": fingerprint}
    del resolved["workers"]  # their number does not affect the result
    if (source := ready_source(manifest, place, settings.shard_size)) is not None:
        if limit is not None:
            raise ValueError("--limit counts URLs: leave it out, all existing pictures are used")
        resolved["inputs"] = list(source.inputs.values())
        todo = state(root, PAIRS, settings=fingerprint, inputs=source.inputs)
        work: dict[str, Any] = {"source": source, "download": asdict(settings)}
        return run_stage(PAIRS, ReadyWorker, root, work, todo, resolved, resources, {})
    with StageLock(root, "urls", take_over=resources.take_over):
        cut = cut_shards(manifest, place, root, settings.shard_size, limit)
    rows = {shard: record.rows_out for shard, record in cut.items()}
    todo = state(root, PAIRS, settings=fingerprint)
    if settings.retry_failed:
        todo = with_retries(todo, settings.allow_private)
    # The workers share each host's limits, so their number must be known before they start.
    with ray_session(resources) if todo.pending else nullcontext():
        if todo.pending:
            resources = fit_workers(resources, DownloadWorker.MEMORY)
            settings = replace(settings, workers=most_workers(len(todo.pending), resources))
        work = asdict(settings)
        return run_stage(PAIRS, DownloadWorker, root, work, todo, resolved, resources, rows)


def ready_source(manifest: Manifest, place: str, shard_size: int) -> Source | None:
    """Return the source of existing pictures; None for a URL list."""
    if manifest.format == "imagefolder":
        return PictureFolder(place, shard_size)
    if manifest.format == "imageparquet":
        return PictureParquet(place)
    try:
        return Tars(place)  # also if a list's manifest is used for its tars, as on the hub
    except (FileNotFoundError, NotADirectoryError):
        if manifest.format == "webdataset":
            raise
        return None


def _worth_another_try(root: Storage, allow_private: bool) -> int:
    """Count the rows that `--retry-failed` would retry."""
    return sum(
        rows
        for record in Ledger(root).records("pairs").values()
        for reason, rows in record.rejected.items()
        if worth_retrying(reason, allow_private)
    )


def with_retries(todo: StageState, allow_private: bool) -> StageState:
    """Move the current shards that have rows worth a retry to the stale ones."""
    again = {
        shard: "some rows are worth a retry"
        for shard in todo.current
        if any(worth_retrying(why, allow_private) for why in todo.records[shard].rejected)
    }
    current = [shard for shard in todo.current if shard not in again]
    return replace(todo, current=current, stale={**todo.stale, **again})


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().absolute())
