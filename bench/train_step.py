"""Training step: ours against a straightforward version of the reference's, in one run.

    python -m bench.train_step                                   # CPU, ViT-B/16, batch 4

Both use the same random model and the same batches from an Arrow stream: forward, backward and
AdamW, in fp32 and bf16 autocast, with interleaved rounds. It prints the samples/s of both, the
ratio of the medians and the share of time spent waiting for data; `--profile` shows the time by
operator. For a GPU, use `bench.gpu_step --measure`. Besides wall time it prints the process's CPU
time, which with `--threads 1` does not depend on other load.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.make_features import make_features
from bench.plain_step import plain_step
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.composition import Losses
from codeseg.model.code.config import CoDeConfig
from codeseg.pipeline.stream.batches import FeatureStream

Step = Callable[..., Losses]


def main() -> None:
    """Measure both steps in each precision and print."""
    arguments = parse()
    torch.set_float32_matmul_precision("high")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    clip = FrozenClip.load(arguments.model, "random")
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder), clip, rows=4 * arguments.batch)
        stream = FeatureStream(folder, batch_size=arguments.batch)
        print(f"{arguments.model}, batch {arguments.batch}, J=2, {torch.get_num_threads()} threads")
        for precision in arguments.precision:
            compare(arguments, clip, stream, precision)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the first round")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def write_features(root: Path, clip: FrozenClip, rows: int) -> None:
    """Write features of random values in this CLIP's shapes, with captions of 6 to 13 tokens."""
    shape = {
        "model": clip.name,
        "pretrained": clip.pretrained,
        "weights_sha256": clip.weights_sha256,
        "image_size": clip.image_size,
        "patch_size": clip.patch_size,
        "width": clip.width,
        "text_width": clip.text_width,
        "embed_dim": clip.embed_dim,
        "layers": clip.layers,
        "context_length": clip.context_length,
    }
    make_features(root, shards=1, rows=rows, views=1, vocabulary=5 * rows, clip=shape)


def compare(
    arguments: argparse.Namespace, clip: FrozenClip, stream: FeatureStream, precision: str
) -> None:
    """Measure both steps in one precision and print."""
    ours = Contestant(clip, precision, lambda code: code)
    contestants = {"ours": ours}
    if not arguments.ours_only:
        contestants["straightforward"] = Contestant(
            clip, precision, lambda code: partial(plain_step, code)
        )
    batches = iter(stream)
    flops = {name: contestant.flops(next(batches)) for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.run(batches, arguments.warm_up)  # allocations, autotuning, compilation
    rounds = [
        {name: c.run(batches, arguments.steps) for name, c in contestants.items()}
        for _ in range(arguments.rounds)
    ]
    medians, cpu = {}, {}
    for name in contestants:
        medians[name] = statistics.median(r[name].wall for r in rounds)
        cpu[name] = statistics.median(r[name].cpu for r in rounds)
        waited = statistics.median(r[name].waited / r[name].wall for r in rounds)
        print(
            f"{precision}  {name:16} {medians[name]:8.3f} s/step ({cpu[name]:.3f} of CPU)  "
            f"{arguments.batch / medians[name]:8.2f} images/s  data wait {waited:6.2%}  "
            f"{flops[name] / arguments.batch / 1e9:4.0f} GFLOP/image  "
            f"{flops[name] / medians[name] / 1e12:6.2f} TFLOP/s",
            flush=True,
        )
    if "straightforward" in medians:
        wall, work = (seconds["straightforward"] / seconds["ours"] for seconds in (medians, cpu))
        print(f"{precision}  ratio of medians  {wall:.2f}x in wall time, {work:.2f}x in CPU time")
    if arguments.profile:
        print(ours.profile(next(batches)))


@dataclass(frozen=True)
class Seconds:
    """The time of one step: on the clock, of all threads, and waiting for the batch."""

    wall: float
    cpu: float
    waited: float


class Contestant:
    """One implementation of a step, with its own trained weights and optimizer."""

    def __init__(self, clip: FrozenClip, precision: str, step: Callable[[CoDe], Step]) -> None:
        torch.manual_seed(0)
        self.code = CoDe(clip, CoDeConfig())
        self.step = step(self.code)
        trained = [p for p in self.code.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-6)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def train(self, batch: Batch) -> float:
        """Run forward, backward and the optimizer; return the loss."""
        B, _, rows, columns = batch.pixels_BCHW.shape
        noise_JBHW = self.code.mask_noise(0, B, (rows, columns))
        with self.autocast:
            loss = self.step(batch, noise_JBHW).total
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def run(self, batches: Iterator[Batch], steps: int) -> Seconds:
        """Run steps and return the mean time of one."""
        waited, began, cpu_began = 0.0, time.perf_counter(), time.process_time()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            self.train(batch)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        return Seconds(wall / max(1, steps), cpu / max(1, steps), waited / max(1, steps))

    def flops(self, batch: Batch) -> int:
        """Count the FLOPs of one step's products (a multiply-add counts two)."""
        with FlopCounterMode(display=False) as counter:
            self.train(batch)
        return int(counter.get_total_flops())

    def profile(self, batch: Batch) -> str:
        """Return a table of one step's time by operator."""
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            self.train(batch)
        table: Any = profiler.key_averages()
        return str(
            table.table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48)
        )


if __name__ == "__main__":
    main()
