"""`codeseg features ROOT`: pairs + nouns -> vocabulary, features: the frozen CLIP's outputs."""

import os
from typing import Annotated

import typer

from codeseg.pipeline.engine.cluster import Resources, ray_session
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.progress import duration
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import FEATURES, VOCABULARY
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features import plan
from codeseg.stages.options import (
    Gpus,
    Memory,
    RayAddress,
    TakeOver,
    Workers,
    conclude,
    make_resources,
)

DEFAULTS = plan.FeatureOptions()


def features(
    root: Annotated[str, typer.Argument(help="Dataset root with nouns: a folder or s3:// URI.")],
    clip: Annotated[
        str, typer.Option(help="open_clip model name, JSON config file, or storybook.")
    ] = DEFAULTS.clip,
    pretrained: Annotated[
        str,
        typer.Option(help="Weights: a tag of the model, a .safetensors or .pt file, or storybook."),
    ] = DEFAULTS.pretrained,
    image_tokens: Annotated[
        str,
        typer.Option(
            help="Store image tokens as fp16, as int8 (half the size), or none "
            "(smallest; the trainer recomputes them, slowest)."
        ),
    ] = DEFAULTS.image_tokens,
    views: Annotated[
        int, typer.Option(min=1, help="Fixed augmented views per image.")
    ] = DEFAULTS.views,
    precision: Annotated[
        str, typer.Option(help="Precision of the CLIP's arithmetic: fp32, bf16 or fp16.")
    ] = DEFAULTS.precision,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images encoded together, and rows per Arrow record batch.")
    ] = DEFAULTS.batch_size,
    min_nouns: Annotated[
        int, typer.Option(min=1, help="Leave out captions with fewer distinct nouns.")
    ] = DEFAULTS.min_nouns,
    least_crop: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Smallest crop, as a share of the image's area; 1 = no crop."
        ),
    ] = DEFAULTS.least_crop,
    flip: Annotated[bool, typer.Option(help="Mirror half the views.")] = DEFAULTS.flip,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the views.")] = DEFAULTS.seed,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if the disk looks too small.")
    ] = False,
    ray_address: RayAddress = None,
    workers: Workers = None,
    gpus: Gpus = 0,
    memory: Memory = None,
    take_over: TakeOver = False,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cores per worker, for decoding and, without a GPU, encoding."),
    ] = None,
) -> None:
    """Precompute the frozen CLIP's features for every pair.

    Rerun to resume: only missing or stale shards are redone. Next: codeseg train ROOT
    """
    options = plan.FeatureOptions(
        clip=clip,
        pretrained=pretrained,
        image_tokens=image_tokens,
        views=views,
        precision=precision,
        batch_size=batch_size,
        min_nouns=min_nouns,
        least_crop=least_crop,
        flip=flip,
        seed=seed,
    )
    cores = cpus or min(os.cpu_count() or 1, 8 if gpus else 2)
    resources = make_resources(ray_address, workers, gpus, memory, cpus=cores, take_over=take_over)
    storage = Storage.open(root)
    conclude(storage, FEATURES, run_features(storage, options, resources, force=force))


def run_features(
    root: Storage, options: plan.FeatureOptions, resources: Resources, *, force: bool = False
) -> list[StageReport]:
    """Announce the work, then make the vocabulary and the pending shards.

    Raises:
        ValueError: wrong options, no nouns, or (without `force`) too small a disk.
    """
    plan.read_nouns(root)  # refuses a root without nouns before any CLIP is fetched
    settings = plan.resolve_settings(options, plan.clip_facts(options.clip, options.pretrained))
    work = plan.make_plan(root, settings)
    if not work.vocabulary.pending and not work.features.pending:
        Ledger(root).write_settings("vocabulary", settings.vocabulary())
        Ledger(root).write_settings("features", settings.to_json())
        return [StageReport("vocabulary"), StageReport("features")]
    device = "cuda" if resources.gpus else "cpu"
    _refuse_missing_gpu(resources)
    if work.features.pending:
        announce(root, work, resources, device, force=force)
    from codeseg.pipeline.features.vocabulary import VocabularyWorker
    from codeseg.pipeline.features.worker import FeaturesWorker  # these load torch

    given = {"features": settings, "device": device, "threads": int(resources.cpus)}
    counting = {**given, "shards": sorted(work.features.inputs or {})}
    with ray_session(resources):
        vocabulary = run_stage(
            VOCABULARY, VocabularyWorker, root, counting, work.vocabulary,
            settings.vocabulary(), resources, {},
        )  # fmt: skip
        if vocabulary.failed:
            return [vocabulary]
        features = run_stage(
            FEATURES, FeaturesWorker, root, given, work.features,
            settings.to_json(), resources, work.rows,
        )  # fmt: skip
    return [vocabulary, features]


def announce(
    root: Storage, work: plan.Work, resources: Resources, device: str, *, force: bool
) -> None:
    """Print the size and time of the work; refuse work that does not fit on the disk.

    Raises:
        ValueError: without `force`, if the estimate exceeds the free space.
    """
    rows, free = sum(work.rows.values()), root.free_bytes()
    speed = plan.known_speed(work.features, work.settings)
    nouns, where, time = plan.new_nouns(root, work), "as measured before", "time unknown"
    nouns_a_second = 1.0
    if (nouns or speed is None) and not resources.ray_address:
        where = "as measured on a few images" if speed is None else where
        images_a_second, nouns_a_second = plan.probe_speed(
            work.settings, device, int(resources.cpus)
        )
        speed = speed or images_a_second
    if speed and not (nouns and resources.ray_address):
        seconds = rows / speed + nouns / nouns_a_second
        time = f"about {duration(seconds)} of one worker ({where})"
    space = "" if free is None else f", {free / 1e9:,.1f} GB free"
    typer.echo(
        f"features: {rows:,} pairs in {len(work.rows)} shards, about {nouns:,} new nouns, "
        f"about {work.new_bytes / 1e9:,.2f} GB{space}, {time}"
    )
    if free is not None and work.new_bytes - work.replaced_bytes > free and not force:
        raise ValueError(
            f"the features need about {work.new_bytes / 1e9:,.0f} GB but {root.uri} has "
            f"{free / 1e9:,.0f} GB free; use --image-tokens int8 or none, another root, or --force"
        )


def _refuse_missing_gpu(resources: Resources) -> None:
    """Refuse a missing GPU, for which Ray would wait forever."""
    if resources.gpus and not resources.ray_address:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "--gpus needs a CUDA GPU but this machine has none; leave it out, or name a "
                "cluster with --ray-address"
            )
