"""An exported file and its segmenter -> their largest difference and both speeds.

Everything runs on the CPU with torch's number of threads.
"""

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import torch
from torch import Tensor

from codeseg.model.export import SegmenterNetworks, sample
from codeseg.model.inference.segmenter import Segmenter

TOLERANCE = 1e-4
TEXTS = (1, 5)
REPEATS = 5

Networks = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]  # inputs by name -> logits and masks


def open_onnx(path: Path) -> Networks:
    """Open an ONNX file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        arrays: list[Any] = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        return tuple(map(torch.from_numpy, arrays))

    return run


def open_torch(path: Path) -> Networks:
    """Open a .pt2 file."""
    module = torch.export.load(path).module()

    def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = module(*inputs.values())
        return outputs

    return run


def grids(segmenter: Segmenter) -> tuple[tuple[int, int], ...]:
    """Return three patch grids: the CLIP's own, a non-square one, and the window's."""
    side = segmenter.clip.image_size // segmenter.clip.patch_size
    return (side, side), (side - 1, side + 4), (2 * side, 2 * side)


@torch.no_grad()
def largest_difference(
    segmenter: Segmenter, exported: Networks, sizes: Iterable[tuple[int, int]]
) -> float:
    """Compare logits and masks on every patch grid of `sizes` with each number of `TEXTS`.

    The segmenter runs in eager mode; its masks come from `window_masks`, as in every prediction.
    Return the largest absolute difference; infinity if shapes differ or a value is not finite.
    """
    networks = SegmenterNetworks(segmenter).eval()
    worst = 0.0
    for grid, count in product(sizes, TEXTS):
        image, embeddings = sample(segmenter, grid, count)
        named = networks.named(embeddings)
        expected = (networks(image, *named.values())[0], segmenter.window_masks(image, embeddings))
        for theirs, ours in zip(exported({"image": image, **named}), expected, strict=True):
            if theirs.shape != ours.shape or not theirs.isfinite().all():
                return float("inf")
            worst = max(worst, float((theirs - ours).abs().max()))
    return worst


@torch.no_grad()
def milliseconds(
    segmenter: Segmenter, exported: Networks, grid: tuple[int, int]
) -> tuple[float, float]:
    """Time one image, alternating eager and exported runs; return the median of each."""
    image, embeddings = sample(segmenter, grid, TEXTS[-1])
    inputs = {"image": image, **SegmenterNetworks(segmenter).named(embeddings)}
    runs = (lambda: segmenter.window_masks(image, embeddings), lambda: exported(inputs))
    times = [[timeit(run, number=1) for run in runs] for _ in range(REPEATS + 1)]
    eager, other = (1000 * median(each) for each in zip(*times[1:], strict=True))  # [0]: warm-up
    return eager, other
