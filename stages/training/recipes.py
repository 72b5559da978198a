"""A recipe's name -> the complete, frozen configuration of a training run.

`code_vitb16` has every constant of the paper's run (METHOD §6, §7): the defaults below. The others
change only what recipes.toml says.
"""

import dataclasses
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from codeseg.model.align.config import AlignConfig
from codeseg.model.code.config import CoDeConfig
from codeseg.model.override import closest, override, parse_assignments
from codeseg.stages.training.config import flatten, read_file

PAPER_BATCH = 4096  # learning rates of METHOD §7 are given at this global batch


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The frozen CLIP, which must be the one that made the features."""

    model: str = "ViT-B-16"
    """Architecture: an open_clip model name."""
    pretrained: str = "openai"
    """Weights: an open_clip tag, a path to a file, or random[:SEED]."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training settings: METHOD §7, data, logging and checkpoints."""

    steps: int = 50_001
    """Optimizer steps (the paper makes 50,000, the reference one more)."""
    batch_size: int = 64
    """Images per step, over all processes and micro-batches."""
    accumulation: int = 1
    """Micro-batches per step. The contrastive losses see one micro-batch (of all processes) at a
    time, so accumulation does not equal a larger batch."""
    seed: int = 0
    """Seed of sample order, noun choice, initial values and Gumbel noise."""
    base_lr: float = 3.2e-4
    """Peak learning rate for a global batch of lr_batch; scaled linearly with batch_size."""
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
    """Autocast type of forward and backward; weights and optimizer remain in fp32."""
    compile: bool | None = None
    """Compile the model with torch.compile, once per phase; none: on a GPU, not on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    prefetch: int = 4
    """Batches to read ahead of the step; at least one per thread."""
    threads: int = 2
    """Threads per process that make batches; with image_tokens=none, they also decode JPEGs."""
    weights: tuple[float, ...] | None = None
    """Each root's share of the samples, if there are several; none: in proportion to its rows."""
    selection: str | None = None
    """Name of a selection made by `codeseg select`; train only on its pairs."""
    skip_corrupt: bool = False
    """Skip and count a shard that cannot be read, instead of stopping."""
    log_every: int = 10
    """Steps between two rows of metrics.parquet."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints; another is written at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep."""
    wandb: str | None = None
    """Weights & Biases project to log to; none: do not log there."""

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
    """The recipe in recipes.toml on which the settings are based."""
    clip: ClipConfig
    model: CoDeConfig | AlignConfig
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


RECIPES: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("recipes.toml").read_text(encoding="utf-8")
)
"""Recipe name -> its `base` (none: the defaults above) and the settings that it changes.

With `aligns`, the defaults of the model are those of an alignment instead of CoDe.
"""


def resolve(
    name: str | None = None, file: Path | None = None, assignments: Iterable[str] = ()
) -> Recipe:
    """Return the recipe that the command line asks for.

    Args:
        name: a recipe; `code_vitb16` if neither it nor a file is given.
        file: a JSON or TOML file, such as another run's config.json; settings that it leaves out
            come from the recipe that it names.
        assignments: "key=value" strings that override both.

    Raises:
        ValueError: one line that names the setting and its fault.
    """
    if name and file:
        raise ValueError("give --recipe or --config, not both")
    saved = read_file(file) if file else {}
    for record in ("codeseg", "data"):  # in a config.json, but not settings
        saved.pop(record, None)
    base = _named(name or str(saved.pop("name", "code_vitb16")))
    try:
        recipe = override(base, flatten(saved))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    recipe = override(recipe, parse_assignments(assignments))
    _check(recipe)
    return recipe


def _named(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; {closest(name, RECIPES)}")
    changes = dict(RECIPES[name])
    base = changes.pop("base", None)
    model = AlignConfig() if changes.pop("aligns", False) else CoDeConfig()
    recipe = _named(base) if base else Recipe(name, ClipConfig(), model, TrainConfig())
    return override(dataclasses.replace(recipe, name=name), flatten(changes))


def _check(recipe: Recipe) -> None:
    """Refuse values of the right type that are meaningless."""
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
