"""`codeseg nouns ROOT`: pairs/ -> nouns/."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from codeseg.pipeline.engine.cluster import Resources
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import NOUNS, state
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.nouns.tagger import NounSettings, NounWorker, resolve_tagger
from codeseg.stages.options import (
    Gpus,
    Memory,
    RayAddress,
    TakeOver,
    Workers,
    conclude,
    make_resources,
)


def nouns(
    root: Annotated[str, typer.Argument(help="Dataset root with downloaded pairs.")],
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
            min=3, help="Tokens that the CLIP's text encoder reads; longer captions are cut."
        ),
    ] = NounSettings.context_length,
    ray_address: RayAddress = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    memory: Memory = None,
    take_over: TakeOver = False,
) -> None:
    """Find the nouns of each caption and their CLIP tokens.

    Rerun to resume: only missing or stale shards are redone. Next: codeseg features ROOT
    """
    settings = replace(
        resolve_tagger(spacy_model), min_nouns=min_nouns, context_length=context_length
    )
    storage = Storage.open(root)
    report = run_nouns(
        storage, settings, make_resources(ray_address, workers, gpus, memory, take_over=take_over)
    )
    conclude(storage, NOUNS, [report])


def run_nouns(root: Storage, settings: NounSettings, resources: Resources) -> StageReport:
    """Find the nouns of the pending shards; ValueError if nothing was downloaded yet."""
    todo = state(root, NOUNS, settings=settings.fingerprint())
    if todo.inputs is None:
        raise ValueError(f"{root.uri} has no pairs yet: run codeseg download first")
    rows = {shard: record.rows_out for shard, record in Ledger(root).records("pairs").items()}
    resolved = {**asdict(settings), "fingerprint": settings.fingerprint()}
    return run_stage(NOUNS, NounWorker, root, asdict(settings), todo, resolved, resources, rows)
