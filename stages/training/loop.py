"""features/NNNNN.arrow + vocabulary/nouns.arrow -> RUN: the training loop (METHOD §7).

Sample order, noun choice, initial values and Gumbel noise are functions of (seed, step), so a run
that was killed resumes from its last checkpoint and ends with the same bits (on a CPU, with the
same number of threads) as one that was not. Under torchrun, every process reads its part of each
batch (stages/training/processes.py).
"""

import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from codeseg.model.align.alignment import Align
from codeseg.model.align.config import AlignConfig
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.config import CoDeConfig
from codeseg.model.learner import Learner
from codeseg.pipeline.engine.stage import backbone_table
from codeseg.pipeline.engine.storage import write_json
from codeseg.pipeline.stream.batches import FeatureStream, Position, StreamBatch
from codeseg.stages.training.flops import peak_flops
from codeseg.stages.training.optimizer import build_optimizer
from codeseg.stages.training.processes import Processes
from codeseg.stages.training.recipes import Recipe, TrainConfig
from codeseg.stages.training.run import (
    CONFIG,
    State,
    check_run,
    folder_digest,
    load_clip,
    resume,
    save,
    saved_progress,
    write_config,
)
from codeseg.stages.training.runlog import Meter, RunLog
from codeseg.stages.training.stepper import Stepper, compiles, hold_frozen


@dataclass
class Stop:
    """A request to stop: whether there was one, and whether by Ctrl-C."""

    asked: bool = False
    by_keyboard: bool = False


@contextmanager
def stop_when_asked() -> Iterator[Stop]:
    """Let SIGTERM and a first Ctrl-C end the loop after saving the current step."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if stop.by_keyboard:
                raise KeyboardInterrupt
            # Not print, which may be the very call that is interrupted.
            os.write(2, b"stopping after this step; press Ctrl-C again to stop at once\n")
            stop.by_keyboard = True
        stop.asked = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def fit(
    root: str | Path | Sequence[str | Path],
    run: Path,
    recipe: Recipe,
    start_from: Path | None = None,
) -> bool:
    """Train until the recipe's last step or until SIGTERM or Ctrl-C.

    Args:
        root: one or more dataset roots with features.
        run: the run's folder; an existing run is resumed.
        recipe: all settings.
        start_from: a RUN or checkpoint whose weights a new run starts with.

    Returns:
        Whether the run is finished; False after SIGTERM, with the last step saved.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with the last step saved; after a second one, at once.
        ValueError: settings, data or folder do not match; the message names them.
        FloatingPointError: a loss or gradient was not finite.
        OSError: a checkpoint could not be written; earlier ones survive.
    """
    with stop_when_asked() as stop, Processes.start(recipe.train.device) as processes:
        with processes.together():
            step, position = saved_progress(run)
            stream = open_stream(root, recipe, position, processes)
            data = {
                "features": stream.settings.to_json(),
                "rows": stream.rows,
                "contents": stream.fingerprint,
                "sources": stream.sources,
            }
            if start_from is not None:
                data["from"] = str(start_from)
            shared = {"RUN": folder_digest(run), "settings": asdict(recipe)}
        processes.refuse_differences(shared | {"data": data["contents"]})
        with processes.together():  # all check the folder before it changes
            check_run(run, recipe, data)
            if step < recipe.train.steps:
                state = prepare(run, recipe, stream, processes.device, start_from)
        if step == recipe.train.steps:
            if processes.is_main:
                typer.echo(f"{run} is finished: {step} steps")
            return True
        with processes.together():
            if processes.is_main:
                write_config(run, recipe, data)
        processes.refuse_differences({"RUN": (run / CONFIG).is_file()})
        with RunLog(run, recipe, state.step, processes.is_main) as log:
            for shard, reason in stream.skipped.items():
                log.say(f"skipping shard {shard}: {reason}")
            finished = train_steps(run, recipe, state, iter(stream), processes, log, stop)
        if not finished and processes.is_main:
            typer.echo(f"{run} was stopped and saved; rerun the same command to resume")
        if not finished and stop.by_keyboard:
            raise KeyboardInterrupt
        return finished


def prepare(
    run: Path, recipe: Recipe, stream: FeatureStream, device: torch.device, start_from: Path | None
) -> State:
    """Build the model and restore the state in which the run, or its starting run, stopped."""
    torch.manual_seed(recipe.train.seed)
    clip = load_clip(stream.name, recipe, stream.settings)
    code: Learner
    if isinstance(recipe.model, AlignConfig):
        assert stream.settings.backbone is not None
        code = Align(clip, recipe.model, asdict(stream.settings.backbone))
    else:
        code = CoDe(clip, recipe.model)
    code.to(device)
    if device.type == "cuda":
        hold_frozen(code, recipe.train.precision)
    state = initial_state(code, recipe.train, device)
    resume(run, state, start_from)
    return state


def initial_state(code: Learner, train: TrainConfig, device: torch.device) -> State:
    """Return the state at step 0 of everything that is trained in either phase."""
    code.set_phase(2)
    parameters = {name: p for name, p in code.named_parameters() if p.requires_grad}
    scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "fp16")
    return State(code, parameters, build_optimizer(parameters, train), scaler)


def open_stream(
    root: str | Path | Sequence[str | Path], recipe: Recipe, start: Position, processes: Processes
) -> FeatureStream:
    """Return this process's part of the batches, from where the run stopped.

    Refuse a batch size that cannot be divided among processes and micro-batches.
    """
    train = recipe.train
    parts = train.accumulation * processes.world_size
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size {train.batch_size} does not divide into {parts} parts "
            f"({processes.world_size} processes × train.accumulation {train.accumulation})"
        )
    model, table = recipe.model, "features"
    if isinstance(model, AlignConfig):
        table = backbone_table(model.backbone, model.pool)
    return FeatureStream(
        root,
        table=table,
        batch_size=train.batch_size // parts,
        nouns_per_image=model.nouns_per_image,
        seed=train.seed,
        rank=processes.rank,
        world_size=processes.world_size,
        start=start,
        regions=isinstance(model, CoDeConfig) and model.region_weight > 0,
        weights=train.weights,
        selection=train.selection,
        skip_corrupt=train.skip_corrupt,
        prefetch=max(train.prefetch, train.threads),
        threads=train.threads,
        pin_memory=processes.device.type == "cuda",
        pad=compiles(train, processes.device),
    )


def train_steps(
    run: Path,
    recipe: Recipe,
    state: State,
    stream: Iterator[StreamBatch],
    processes: Processes,
    log: RunLog,
    stop: Stop,
) -> bool:
    """Run the loop; return whether the last step is done, False if it was stopped earlier."""
    train = recipe.train
    meter = Meter(processes.device, peak_flops(processes.device, train.precision))
    stepper = Stepper(state, train, processes)
    keys: dict[int, list[list[str]]] = {}  # of the steps whose figures have not been read yet
    while state.step < train.steps:
        began = time.perf_counter()
        batches = [next(stream) for _ in range(train.accumulation)]
        waited = time.perf_counter() - began
        stepper.enter_phase(batches[0])
        terms = stepper.forward_backward(batches)
        terms["grad_norm"] = stepper.gradient_norm()
        asked = stop.asked
        stepper.all_reduce(terms, asked)
        done = state.step + 1
        keys[done] = [batch.keys for batch in batches]
        last = done == train.steps
        logs = last or done % train.log_every == 0
        saves = last or done % train.checkpoint_every == 0
        figures: dict[str, float] = {}
        # Reading waits for the GPU, so it is done only when a row is logged or a state is saved.
        if stepper.reads_each_step or logs or saves or (asked and processes.world_size == 1):
            step, figures = stepper.read()
            refuse_non_finite(run, state, step, figures, keys, processes)
            keys.clear()
        rate = stepper.update(terms["grad_norm"])
        state.step, state.position = done, batches[-1].position

        meter.step(train.batch_size, waited, stepper.flops * train.accumulation)
        stopping = figures.pop("stop", 0.0) > 0
        if logs:
            log.row({"step": done, "phase": stepper.phase, **figures, "lr": rate, **meter.read()})
        if saves or stopping:
            log.save()
            if processes.is_main:
                save(run, recipe, state)
        if stopping:
            break
    return state.step == train.steps


def refuse_non_finite(
    run: Path,
    state: State,
    step: int,
    figures: dict[str, float],
    keys: dict[int, list[list[str]]],
    processes: Processes,
) -> None:
    """Save the batch's keys and raise FloatingPointError if a loss or gradient is not finite.

    Figures read later are those of the first bad step; the weights have not changed since. With
    fp16, the loss scaler handles an infinite gradient norm while its scale is above 1.
    """
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if not bad or (
        bad == ["grad_norm"] and state.scaler.is_enabled() and state.scaler.get_scale() > 1
    ):
        return
    gradients = [
        name
        for name, parameter in state.parameters.items()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    path = run / f"nonfinite-step-{step:06d}.json"
    report = {
        "step": step,
        "terms": {name: str(figures[name]) for name in bad},
        "gradients": gradients if step == state.step + 1 else "of a later step by now",
        "keys": [key for rank in processes.gather(keys[step]) for batch in rank for key in batch],
    }
    if processes.is_main:
        write_json(path, report)
    terms = [name for name in bad if name.startswith("loss_")] or bad
    raise FloatingPointError(
        f"step {step}: {', '.join(terms)} not finite; the weights were not updated, "
        f"the batch's keys are in {path}"
    )
