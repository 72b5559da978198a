"""Steps of training against a stored trajectory: losses of every step and the last weights.

    python -m tests.trajectory FILE.npz            # compare our Stepper with the file
    python -m tests.trajectory FILE.npz --make     # write it with the plain rendering

The file holds `loss/TERM` (S,), `start/WEIGHT` and `end/WEIGHT`. The plain rendering is
`bench/plain_step.py`, with the optimizer and its schedule written out longhand below: 20 steps on
the tests' tiny CLIP, the last block's copy freed at step 10, a template for each noun.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.plain_step import plain_step
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.stages.training.loop import initial_state
from codeseg.stages.training.processes import Processes
from codeseg.stages.training.recipes import TrainConfig
from codeseg.stages.training.stepper import Stepper, step_seed
from tests.helpers.small_code import TINY, small_batch, small_code

STEPS, SWITCH, WARM_UP, PEAK, LAST = 20, 10, 6, 1e-4, 1e-5
TOLERANCE = 1e-5
TRAIN = TrainConfig(
    steps=STEPS, batch_size=4, lr_batch=4, base_lr=PEAK, base_final_lr=LAST, precision="fp32",
    warmup_fraction=WARM_UP / STEPS, phase1_fraction=SWITCH / STEPS, device="cpu",
)  # fmt: skip


def start() -> CoDe:
    """Make the model at step 0."""
    clip = FrozenClip.load(TINY, "random:1")
    return small_code(clip, attend_padding=True, random_template=True)


def batches(code: CoDe) -> Iterator[tuple[Batch, int]]:
    """Yield each step's batch and the seed of its noise and templates: pictures shift each step."""
    batch = small_batch(code.clip)
    for step in range(STEPS):
        shifted = batch.pixels_BCHW.roll(5 * step, dims=-1)
        yield replace(batch, pixels_BCHW=shifted), step_seed(TRAIN.seed, step, 0)


def plain(code: CoDe) -> dict[str, list[float]]:
    """Train by the plain rendering and AdamW longhand; return the losses by term."""
    terms: dict[str, list[float]] = {}
    moments: dict[str, tuple[Tensor, Tensor, int]] = {}
    for step, (batch, seed) in enumerate(batches(code)):
        for parameter in code.image_segmenter.block.parameters():
            parameter.requires_grad_(step >= SWITCH)
        code.zero_grad()
        size = batch.pixels_BCHW.shape[-2], batch.pixels_BCHW.shape[-1]
        noise, templates = code.mask_noise(seed, 4, size), code.draw_templates(seed, 4)
        losses = plain_step(code, batch, noise, templates)
        sum(losses.values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            terms.setdefault(name, []).append(loss.item())
        moved = {name: p for name, p in code.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in moved.values()))  # type: ignore[union-attr]
        rate = PEAK * (1e-4 + (1 - 1e-4) * step / WARM_UP)
        if step >= WARM_UP:
            along = (step - WARM_UP) / (STEPS - 1 - WARM_UP)
            rate = LAST + (PEAK - LAST) * (1 + math.cos(math.pi * along)) / 2
        for name, p in moved.items():
            assert p.grad is not None
            gradient = p.grad * min(1.0, 5.0 / (norm + 1e-6))
            first, second, count = moments.get(name, (0 * p.detach(), 0 * p.detach(), 0))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moments[name] = first, second, count + 1
            decay = 0.0 if p.ndim == 1 or name.endswith(".bias") else 0.05
            slope = first / (1 - 0.9 ** (count + 1))
            scale = (second / (1 - 0.999 ** (count + 1))).sqrt() + 1e-6
            with torch.no_grad():
                p *= 1 - rate * decay
                p -= rate * slope / scale
    return terms


def ours(code: CoDe) -> dict[str, list[float]]:
    """Train by the trainer's Stepper; return the losses by term."""
    device = torch.device("cpu")
    state = initial_state(code, TRAIN, device)
    stepper = Stepper(state, TRAIN, Processes(0, 1, device))
    terms: dict[str, list[float]] = {}
    for batch, _ in batches(code):
        stepper.enter_phase(batch)
        figures = stepper.forward_backward([batch])
        figures["grad_norm"] = stepper.gradient_norm()
        stepper.all_reduce(figures, stop=False)
        for name, value in stepper.read()[1].items():
            terms.setdefault(name.removeprefix("loss_"), []).append(value)
        stepper.update(figures["grad_norm"])
        state.step += 1
    return terms


def make(path: Path) -> None:
    """Write the plain rendering's trajectory."""
    code = start()
    arrays: dict[str, Any] = {
        f"start/{n}": p.clone() for n, p in code.trainable_state_dict().items()
    }
    arrays |= {f"loss/{name}": np.array(values) for name, values in plain(code).items()}
    arrays |= {f"end/{name}": weight for name, weight in code.trainable_state_dict().items()}
    np.savez(path, **{name: np.asarray(value) for name, value in arrays.items()})


def compare(path: Path) -> dict[str, float]:
    """Return the largest difference of each loss term and of each weight."""
    code = start()
    with np.load(path) as file:
        stored = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    begin = {n.removeprefix("start/"): v for n, v in stored.items() if n.startswith("start/")}
    code.load_trainable_state_dict(begin)
    found = {f"loss/{name}": torch.tensor(v, dtype=torch.double) for name, v in ours(code).items()}
    found |= {f"end/{name}": weight for name, weight in code.trainable_state_dict().items()}
    wanted = {name: value for name, value in stored.items() if not name.startswith("start/")}
    return {name: (found[name] - value).abs().max().item() for name, value in wanted.items()}


def main(arguments: list[str]) -> int:
    """Make or compare; return 1 where something differs by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--make", action="store_true")
    parsed = parser.parse_args(arguments)
    if parsed.make:
        make(parsed.file)
        return 0
    differences = compare(parsed.file)
    for name, difference in differences.items():
        mark = "ok " if difference <= TOLERANCE else "OUT"
        print(f"{mark} {difference:9.2e} (<= {TOLERANCE:.0e})  {name}")
    wrong = sum(not difference <= TOLERANCE for difference in differences.values())
    print(f"{len(differences) - wrong} of {len(differences)} within tolerance")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
