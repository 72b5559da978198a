"""Named runs: a recipe's name -> a complete frozen configuration of a training run.

`code_vitb16` has every constant of the paper's run (METHOD §6, §7). The others change only what
their docstring says. Training on drawings needs other constants than training on the web:
`storybook` and its ablations have those of the demo.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from codeseg.model.code.config import CoDeConfig
from codeseg.model.override import closest, override, parse_assignments
from codeseg.stages.training.config import flatten, read_file

PAPER_BATCH = 4096  # learning rates of METHOD §7 are given at this global batch


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP; must be the one that made the feature table."""

    model: str = "ViT-B-16"
    """Architecture, an open_clip name."""
    pretrained: str = "openai"
    """Weights: an open_clip tag, a path to a file, or random[:SEED]."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: METHOD §7, and where it is logged and saved."""

    steps: int = 50_001
    """Optimizer steps (the paper's 50,000; the reference makes one more)."""
    batch_size: int = 64
    """Images per step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per step; the contrastive losses see one micro-batch (of all processes) at a
    time, so more of them do not equal a larger batch."""
    seed: int = 0
    """Seed of sample order, noun choice, initial values and Gumbel noise."""
    base_lr: float = 3.2e-4
    """Peak learning rate at a global batch of lr_batch; scaled linearly with batch_size."""
    base_final_lr: float = 4e-5
    """Learning rate at the last step, scaled like the peak."""
    lr_batch: int = PAPER_BATCH
    """The global batch to which base_lr and base_final_lr refer."""
    warmup_fraction: float = 0.3
    """Share of the steps with linear warm-up (the paper's 15,000 of 50,000); cosine follows."""
    warmup_start: float | None = 1e-4
    """Share of the peak at the first step; none: 1 / number of warm-up steps."""
    phase1_fraction: float = 30_000 / 50_001
    """Share of the steps in which the last block's copy is frozen (the paper's 30,000)."""
    weight_decay: float = 0.05
    """AdamW's weight decay, except on biases and one-dimensional parameters."""
    decay_scalars: bool = True
    """Decay gates, mask scales and biases and log-temperatures too, as the reference does."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's two moments."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip_norm: float = 5.0
    """Gradients are scaled down to this global L2 norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Autocast type of forward and backward; weights and optimizer stay in fp32."""
    compile: bool | None = None
    """Compile the model with torch.compile, once a phase; none: on a GPU, not on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    prefetch: int = 4
    """Batches read ahead of the step, at least one a thread."""
    threads: int = 2
    """Threads of a process that make batches; with image_tokens=none each decodes its JPEGs."""
    weights: tuple[float, ...] | None = None
    """Each root's share of the samples, if there are several; none: in proportion to its rows."""
    selection: str | None = None
    """Name of a selection by `codeseg select`; only its pairs are trained on."""
    skip_corrupt: bool = False
    """Skip and count a shard that cannot be read, instead of stopping."""
    log_every: int = 10
    """Steps between two rows of metrics.parquet."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints; one more is written at the end."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep, the newest."""
    wandb: str | None = None
    """Weights & Biases project to log to; none = do not log there."""

    @property
    def peak_lr(self) -> float:
        """The learning rate at the end of the warm-up."""
        return self.base_lr * self.batch_size / self.lr_batch

    @property
    def final_lr(self) -> float:
        """The learning rate at the last step."""
        return self.base_final_lr * self.batch_size / self.lr_batch

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return round(self.warmup_fraction * self.steps)

    @property
    def phase1_steps(self) -> int:
        """Steps in which the last block's copy is frozen."""
        return round(self.phase1_fraction * self.steps)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The complete settings of a run, as in `RUN/config.json`."""

    name: str
    """Name of the function below that it started from."""
    clip: ClipConfig
    model: CoDeConfig
    train: TrainConfig


HARMLESS = {
    f"train.{name}"
    for name in (
        "device", "compile", "prefetch", "threads", "log_every", "checkpoint_every",
        "keep_checkpoints", "wandb",
    )
}  # fmt: skip
"""Settings that may change when a run is resumed: they do not change what is learned."""

POSITIVE = ("steps", "batch_size", "accumulation", "base_lr", "lr_batch", "clip_norm", "eps",
            "prefetch", "threads", "log_every", "checkpoint_every", "keep_checkpoints")  # fmt: skip
FRACTIONS = ("warmup_fraction", "phase1_fraction")


def code_vitb16() -> Recipe:
    """CoDe on ViT-B/16, the published run: 50,001 steps of 64 images."""
    return Recipe("code_vitb16", ClipConfig(), CoDeConfig(), TrainConfig())


def code_vitb16_c() -> Recipe:
    """Ablation +C: co-decomposition without highlighting prompts (thesis table 4.2)."""
    return _without(code_vitb16(), "code_vitb16_c", word_prompt=False, region_prompt=False)


def code_vitb16_cw() -> Recipe:
    """Ablation +C +W: with the word prompt, without the region prompt."""
    return _without(code_vitb16(), "code_vitb16_cw", region_prompt=False)


def baseline_vitb16() -> Recipe:
    """The ablation's baseline: no text segmenter, no co-decomposition losses."""
    return _baseline(code_vitb16(), "baseline_vitb16")


def scg_vitb16() -> Recipe:
    """SCG on ViT-B/16: nouns find regions, no mask is learned; needs `codeseg regions` first."""
    return _regions_alone(code_vitb16(), "scg_vitb16")


def code_scg_vitb16() -> Recipe:
    """CoDe and SCG together on ViT-B/16; needs `codeseg regions` first."""
    return _without(code_vitb16(), "code_scg_vitb16", region_weight=1.0)


def code_vitl14() -> Recipe:
    """CoDe on ViT-L/14; all else as in the paper."""
    return dataclasses.replace(
        code_vitb16(), name="code_vitl14", clip=ClipConfig(model="ViT-L-14", pretrained="openai")
    )


def storybook() -> Recipe:
    """CoDe on the embedded tiny CLIP, with the demo's budget: a minute on two cores.

    Chosen on the development scenes (seed 3), see docs/ablation.md. The paper's weights suit a
    CLIP that knows nouns well; here the contrastive terms and the empty masks on other pictures'
    nouns have larger weights, without which most of the ground is taken for things.
    """
    return Recipe(
        "storybook",
        ClipConfig(model="storybook", pretrained="storybook"),
        CoDeConfig(
            tcl_feature_weight=1.0,
            tcl_image_weight=1.0,
            tv_embedding_weight=0.1,
            tv_mask_weight=0.1,
            area_positive_weight=1.0,
            area_negative_weight=2.0,
            area_prior=0.15,
            clip_start=True,
        ),
        TrainConfig(
            steps=100,
            batch_size=32,
            base_lr=1e-3,
            base_final_lr=1e-4,
            lr_batch=32,
            warmup_fraction=0.1,
            warmup_start=None,
            phase1_fraction=0.5,
            decay_scalars=False,
            precision="fp32",
            log_every=1,
            checkpoint_every=25,
            keep_checkpoints=2,
        ),
    )


def storybook_c() -> Recipe:
    """Ablation +C on the embedded tiny CLIP."""
    return _without(storybook(), "storybook_c", word_prompt=False, region_prompt=False)


def storybook_cw() -> Recipe:
    """Ablation +C +W on the embedded tiny CLIP."""
    return _without(storybook(), "storybook_cw", region_prompt=False)


def storybook_baseline() -> Recipe:
    """The ablation's baseline on the embedded tiny CLIP."""
    return _baseline(storybook(), "storybook_baseline")


def storybook_scg() -> Recipe:
    """SCG alone on the embedded tiny CLIP."""
    return _regions_alone(storybook(), "storybook_scg")


def storybook_code_scg() -> Recipe:
    """CoDe and SCG together on the embedded tiny CLIP."""
    return _without(storybook(), "storybook_code_scg", region_weight=1.0)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        code_vitb16,
        code_vitb16_c,
        code_vitb16_cw,
        baseline_vitb16,
        scg_vitb16,
        code_scg_vitb16,
        code_vitl14,
        storybook,
        storybook_c,
        storybook_cw,
        storybook_baseline,
        storybook_scg,
        storybook_code_scg,
    )
}


def resolve(
    name: str | None = None, file: Path | None = None, assignments: Iterable[str] = ()
) -> Recipe:
    """Return the recipe that the command line asks for.

    Args:
        name: of a recipe; `code_vitb16` if neither it nor a file is given.
        file: a JSON or TOML file, such as another run's config.json; settings that it leaves out
            come from the recipe of its `name`.
        assignments: "key=value" strings that override both.

    Raises:
        ValueError: one line that names the setting and its fault.
    """
    if name and file:
        raise ValueError("give --recipe or --config, not both")
    saved = read_file(file) if file else {}
    base = _named(name or str(saved.pop("name", "code_vitb16")))
    try:
        recipe = override(base, flatten(_settings(saved)))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    recipe = override(recipe, parse_assignments(assignments))
    _check(recipe)
    return recipe


def _named(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; {closest(name, RECIPES)}")
    return RECIPES[name]()


def _settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the settings: a saved config.json also records the version and the data."""
    return {key: value for key, value in saved.items() if key not in ("codeseg", "data")}


def _without(recipe: Recipe, name: str, **switches: Any) -> Recipe:
    model = dataclasses.replace(recipe.model, **switches)
    return dataclasses.replace(recipe, name=name, model=model)


def _regions_alone(recipe: Recipe, name: str) -> Recipe:
    return _without(recipe, name, masks=False, co_decomposition=False, region_weight=1.0)


def _baseline(recipe: Recipe, name: str) -> Recipe:
    return _without(recipe, name, co_decomposition=False, word_prompt=False, region_prompt=False)


def _check(recipe: Recipe) -> None:
    """Refuse values of the right type that make no sense."""
    train = recipe.train
    for field in POSITIVE:
        if getattr(train, field) <= 0:
            raise ValueError(f"setting train.{field} must be above 0, not {getattr(train, field)}")
    for field in FRACTIONS:
        if not 0 <= getattr(train, field) <= 1:
            raise ValueError(f"setting train.{field} must lie in 0..1, not {getattr(train, field)}")
    if train.batch_size % train.accumulation:
        raise ValueError(
            f"train.batch_size {train.batch_size} does not divide into "
            f"{train.accumulation} micro-batches (train.accumulation)"
        )
