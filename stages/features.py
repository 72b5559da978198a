"""`codeseg features ROOT`: pairs/, nouns/ -> vocabulary/, features/ of a frozen CLIP or ViT."""

import os
from typing import Annotated

import typer

from codeseg.pipeline.engine.cluster import Resources, ray_session
from codeseg.pipeline.engine.ledger import Ledger
from codeseg.pipeline.engine.progress import duration
from codeseg.pipeline.engine.shards import StageReport, run_stage
from codeseg.pipeline.engine.stage import VOCABULARY, stage_of
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.features import plan
from codeseg.stages import options

DEFAULTS = plan.FeatureOptions()


def features(
    root: Annotated[str, typer.Argument(help="Dataset root with nouns: a folder or s3:// URI.")],
    clip: options.ClipModel = DEFAULTS.clip,
    pretrained: options.ClipWeights = DEFAULTS.pretrained,
    image_tokens: Annotated[
        str,
        typer.Option(
            help="Store image tokens as fp16, int8 (half the size), or none "
            "(smallest, but the trainer must recompute them)."
        ),
    ] = DEFAULTS.image_tokens,
    views: Annotated[
        int, typer.Option(min=1, help="Fixed augmented views per image.")
    ] = DEFAULTS.views,
    precision: Annotated[
        str, typer.Option(help="Precision of the CLIP's arithmetic: fp32, bf16 or fp16.")
    ] = DEFAULTS.precision,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images to encode together; rows per Arrow record batch.")
    ] = DEFAULTS.batch_size,
    min_nouns: Annotated[
        int, typer.Option(min=1, help="Leave out captions with fewer distinct nouns.")
    ] = DEFAULTS.min_nouns,
    least_crop: Annotated[
        float,
        typer.Option(
            min=0.01, max=1, help="Smallest crop, as a share of the image's area (1: no crop)."
        ),
    ] = DEFAULTS.least_crop,
    flip: Annotated[bool, typer.Option(help="Mirror half the views.")] = DEFAULTS.flip,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the views.")] = DEFAULTS.seed,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Store vectors of a self-supervised ViT instead, to align words to it: storybook, "
            "or a timm name such as vit_base_patch14_dinov2.lvd142m."
        ),
    ] = DEFAULTS.backbone,
    weights: Annotated[
        str | None, typer.Option(help="Weight file of that ViT, instead of the hub's.")
    ] = DEFAULTS.weights,
    pool: Annotated[
        str, typer.Option(help="Pool that ViT's patches by the attention heads, or by regions.")
    ] = DEFAULTS.pool,
    grid: Annotated[
        int | None,
        typer.Option(min=1, help="Patches of that ViT per side (default: as many as the CLIP's)."),
    ] = DEFAULTS.grid,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if the disk looks too small.")
    ] = False,
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    gpus: options.Gpus = 0,
    memory: options.Memory = None,
    take_over: options.TakeOver = False,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="Cores per worker, for decoding and, without a GPU, encoding."),
    ] = None,
) -> None:
    """Precompute the frozen CLIP's features, or vectors of a ViT, for every pair.

    Rerun to resume: only missing or stale shards are redone. Next: codeseg train ROOT
    """
    chosen = plan.FeatureOptions(
        clip=clip, pretrained=pretrained, image_tokens=image_tokens, views=views,
        precision=precision, batch_size=batch_size, min_nouns=min_nouns, least_crop=least_crop,
        flip=flip, seed=seed, backbone=backbone, weights=weights, pool=pool, grid=grid,
    )  # fmt: skip
    cores = cpus or min(os.cpu_count() or 1, 8 if gpus else 2)
    resources = options.make_resources(
        ray_address, workers, gpus, memory, cpus=cores, take_over=take_over
    )
    storage = Storage.open(root)
    reports = run_features(storage, chosen, resources, force=force)
    options.conclude(storage, stage_of(reports[-1].stage), reports)


def run_features(
    root: Storage, chosen: plan.FeatureOptions, resources: Resources, *, force: bool = False
) -> list[StageReport]:
    """Announce the work, then make the vocabulary and the pending shards.

    Refuse wrong options, a root without nouns and, unless `force`, too small a disk.
    """
    plan.read_nouns(root)  # refuses a root without nouns before downloading a CLIP
    settings = plan.resolve_settings(chosen, plan.clip_facts(chosen.clip, chosen.pretrained))
    work, stage = plan.make_plan(root, settings), settings.stage
    if not work.vocabulary.pending and not work.features.pending:
        Ledger(root).write_settings("vocabulary", settings.vocabulary())
        Ledger(root).write_settings(stage.table, settings.to_json())
        return [StageReport("vocabulary"), StageReport(stage.table)]
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
            stage, FeaturesWorker, root, given, work.features,
            settings.to_json(), resources, work.rows,
        )  # fmt: skip
    return [vocabulary, features]


def announce(
    root: Storage, work: plan.Work, resources: Resources, device: str, *, force: bool
) -> None:
    """Print the work's size and time; refuse work that does not fit on the disk unless `force`."""
    rows, free = sum(work.rows.values()), root.free_bytes()
    speed = plan.known_speed(work.features, work.settings)
    nouns, source, time = plan.new_nouns(root, work), "as measured before", "time unknown"
    nouns_per_second = 1.0
    if (nouns or speed is None) and not resources.ray_address:
        source = "as measured on a few images" if speed is None else source
        images_per_second, nouns_per_second = plan.probe_speed(
            work.settings, device, int(resources.cpus)
        )
        speed = speed or images_per_second
    if speed and not (nouns and resources.ray_address):
        seconds = rows / speed + nouns / nouns_per_second
        time = f"about {duration(seconds)} for one worker ({source})"
    space = "" if free is None else f", {free / 1e9:,.1f} GB free"
    typer.echo(
        f"{work.settings.stage.table}: {rows:,} pairs in {len(work.rows)} shards, "
        f"about {nouns:,} new nouns, about {work.new_bytes / 1e9:,.2f} GB{space}, {time}"
    )
    if free is not None and work.new_bytes - work.replaced_bytes > free and not force:
        less = "" if work.settings.backbone else "--image-tokens int8 or none, "
        raise ValueError(
            f"the features need about {work.new_bytes / 1e9:,.0f} GB but {root.uri} has "
            f"{free / 1e9:,.0f} GB free: use {less}another root, or --force"
        )


def _refuse_missing_gpu(resources: Resources) -> None:
    """Refuse --gpus on a machine without a GPU, where Ray would wait forever."""
    if resources.gpus and not resources.ray_address:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "--gpus needs a CUDA GPU but this machine has none: leave out --gpus, or name a "
                "cluster with --ray-address"
            )
