"""`codeseg nouns ROOT`: pairs/ -> nouns/, each caption's nouns and CLIP tokens."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import NOUNS, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import NounSettings, NounWorker, resolve_tagger
from codeseg.stages import options


def nouns(
    root: Annotated[str, typer.Argument(help="Dataset root with pairs: a folder or s3:// URI.")],
    spacy_model: Annotated[
        str | None,
        typer.Option(
            help="spaCy package or folder with an English tagger (default: en_core_web_sm)."
        ),
    ] = None,
    min_nouns: Annotated[
        int, typer.Option(min=1, help="Reject captions with fewer distinct nouns.")
    ] = NounSettings.min_nouns,
    context_length: Annotated[
        int,
        typer.Option(
            min=3, help="Context length of the CLIP's text encoder; longer captions are cut."
        ),
    ] = NounSettings.context_length,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0,
    memory: options.Memory = None,
    take_over: options.TakeOver = False,
) -> None:
    """Find the nouns of each caption and their CLIP tokens.

    Rerun to resume: only missing or stale shards are redone. Next: codeseg features ROOT
    """
    settings = replace(
        resolve_tagger(spacy_model), min_nouns=min_nouns, context_length=context_length
    )
    storage = Storage.open(root)
    resources = options.make_resources(ray_address, workers, gpus, memory, take_over=take_over)
    options.conclude(storage, NOUNS, [run_nouns(storage, settings, resources)])


def run_nouns(root: Storage, settings: NounSettings, resources: Resources) -> StageReport:
    """Find the nouns of the pending shards; refuse a root without pairs."""
    todo = state(root, NOUNS, settings=settings.fingerprint())
    if todo.inputs is None:
        raise ValueError(f"{root.uri} has no pairs yet: run codeseg download first")
    rows = {shard: record.rows_out for shard, record in Ledger(root).records("pairs").items()}
    resolved = {**asdict(settings), "fingerprint": settings.fingerprint()}
    return run_stage(NOUNS, NounWorker, root, asdict(settings), todo, resolved, resources, rows)
