"""A run's folder: its settings, its last step and its checkpoints.

    RUN/config.json                the resolved recipe and the data's identity
    RUN/checkpoints/step-NNNNNN/   the files of model/checkpoint.py, optimizer and position included
    RUN/metrics.parquet            see stages/training/runlog.py

The same command resumes a RUN; a RUN with other settings or data is refused.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codeseg.model.checkpoint import (
    OPTIMIZER,
    STATE,
    check_clip,
    checkpoints,
    keep_last,
    load_checkpoint,
    load_tensors,
    read_json,
    restore,
    save_checkpoint,
)
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.learner import Learner
from codeseg.model.override import override
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.stream.batches import START, Position
from codeseg.pipeline.stream.feature_settings import FeatureSettings
from codeseg.stages.training.config import differences, flatten
from codeseg.stages.training.optimizer import learning_rate, optimizer_tensors, restore_optimizer
from codeseg.stages.training.recipes import HARMLESS, Recipe

CONFIG = "config.json"
SHOWN_DIFFERENCES = 5  # another recipe may differ in dozens of settings
LONGER = (
    "; more steps would change the learning rate of completed steps: `codeseg train … NEW_RUN "
    "--from {}` starts a new schedule with these weights"
)


class OtherRunError(ValueError):
    """The run folder belongs to other settings or data; `lines` are the differences."""

    def __init__(self, run: Path, recipe: str, lines: list[str]) -> None:
        self.lines = lines
        shown, rest = "; ".join(lines[:SHOWN_DIFFERENCES]), len(lines) - SHOWN_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        super().__init__(
            f"{run} was started with --recipe {recipe} and other settings or data ({shown}{more}): "
            f"continue with --config {run / CONFIG} on the same data, or give another RUN folder"
            + (LONGER.format(run) if any(line.startswith("train.steps:") for line in lines) else "")
        )


@dataclasses.dataclass
class State:
    """Everything that a step changes and a checkpoint saves."""

    code: Learner
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int = 0  # number of completed steps
    position: Position = START  # where the next batch begins


def check_run(run: Path, recipe: Recipe, data: Mapping[str, Any]) -> None:
    """Refuse a folder that belongs to other settings or data (OtherRunError) or is no run.

    `data` is the current data's identity; the folder need not exist.
    """
    if (run / CONFIG).is_file():
        saved, wanted = read_json(run / CONFIG), resolved(recipe, data)
        ignore = {
            "codeseg",
            "data.sources",
            "data.features.backbone.weights",  # their location; their hash counts
            *HARMLESS,
            *_free_schedule(saved, recipe, saved_progress(run)[0]),
        }
        if lines := differences(saved, wanted, ignore):
            raise OtherRunError(run, saved.get("name", "(none)"), lines)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"{run} exists and is not a run of codeseg: use another RUN folder")


def _free_schedule(saved: Mapping[str, Any], recipe: Recipe, done: int) -> tuple[str, ...]:
    """Return the schedule's settings if the current ones agree for all completed steps."""
    before, after = override(recipe, flatten({"train": saved["train"]})).train, recipe.train
    if after.steps < done or any(
        learning_rate(step, before) != learning_rate(step, after)
        or (step < before.phase1_steps) != (step < after.phase1_steps)
        for step in range(done)
    ):
        return ()
    names = ("steps", "warmup_fraction", "phase1_fraction", "base_final_lr")
    return tuple(f"train.{name}" for name in names) if done else ()


def folder_digest(run: Path) -> str:
    """Return a hash of settings and last checkpoint, which must be equal on all processes."""
    digest = hashlib.sha256()
    folders = [run, *(checkpoints(run)[-1:])]
    for path in sorted(path for folder in folders for path in folder.glob("*.*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def write_config(run: Path, recipe: Recipe, data: Mapping[str, Any]) -> None:
    """Claim the folder for this run."""
    text = json.dumps(resolved(recipe, data), indent=2) + "\n"
    Storage.open(run).write_atomic(CONFIG, text.encode())


def resolved(recipe: Recipe, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of RUN/config.json as it is read back, with lists for tuples."""
    config = {"codeseg": codeseg_version(), **dataclasses.asdict(recipe), "data": dict(data)}
    plain: dict[str, Any] = json.loads(json.dumps(config))
    return plain


def codeseg_version() -> str:
    """Return the installed version, or a note that this is a source tree."""
    try:
        return version("codeseg")
    except PackageNotFoundError:
        return "source"


def load_clip(root: str, recipe: Recipe, settings: FeatureSettings) -> FrozenClip:
    """Return the recipe's CLIP; refuse one that did not make the features.

    If the name differs, no weights are downloaded first.
    """
    made = settings.clip
    remedy = (
        f"run `codeseg {settings.stage.command} {root} --clip {recipe.clip.model} --pretrained "
        f"{recipe.clip.pretrained}`, or train with --set clip.model={made.model} "
        f"--set clip.pretrained={made.pretrained}"
    )
    if made.model != recipe.clip.model:
        raise ValueError(
            f"the features of {root} were made with CLIP {made.model}/{made.pretrained}, "
            f"recipe {recipe.name} needs {recipe.clip.model}/{recipe.clip.pretrained}: {remedy}"
        )
    clip = FrozenClip.load(recipe.clip.model, recipe.clip.pretrained)
    try:
        check_clip(dataclasses.asdict(made), clip, f"the feature table of {root}")
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None
    return clip


def save(run: Path, recipe: Recipe, state: State) -> None:
    """Write the checkpoint of the current step unless it exists; delete the oldest.

    On a full disk, raise OSError; the previous checkpoint survives.
    """
    folder = run / "checkpoints" / f"step-{state.step:06d}"
    if folder.exists():
        return
    save_checkpoint(
        folder,
        state.code,
        dataclasses.asdict(recipe.train),
        version=codeseg_version(),
        sources=read_json(run / CONFIG)["data"]["sources"],
        optimizer=optimizer_tensors(state.optimizer, state.parameters),
        state={
            "step": state.step,
            "position": {"epoch": state.position.epoch, "index": state.position.index},
            "scaler": state.scaler.state_dict(),
        },
    )
    keep_last(run, recipe.train.keep_checkpoints)


def saved_progress(run: Path) -> tuple[int, Position]:
    """Return the last checkpoint's number of steps and data position, or the start."""
    saved = checkpoints(run)
    if not saved:
        return 0, START
    values = read_json(saved[-1] / STATE)
    return int(values["step"]), Position(**values["position"])


def resume(run: Path, state: State, start_from: Path | None = None) -> None:
    """Load the run's last checkpoint into the state; a new run loads the weights of `start_from`.

    A ValueError names a damaged file, or a checkpoint of another ViT.
    """
    saved = checkpoints(run)
    if not saved:
        if start_from is not None:
            restore(state.code, load_checkpoint(start_from))
        return
    restore(state.code, load_checkpoint(saved[-1]))
    tensors = load_tensors(saved[-1] / OPTIMIZER)
    restore_optimizer(state.optimizer, state.parameters, tensors)
    state.step, state.position = saved_progress(run)
    state.scaler.load_state_dict(read_json(saved[-1] / STATE)["scaler"])
