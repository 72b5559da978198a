"""One training step as a GPU would run it, counted on fake tensors: no GPU, nothing computed.

    python -m bench.gpu_step --recipe code_vitb16 --batch 64 256 512 [--phase 2] [--tokens int8]

The trainer's own Stepper runs forward, backward, clipping and AdamW on fake CPU tensors, with the
forms that the model takes on a GPU. Every operator that is no view counts as one kernel that reads
its inputs and writes its outputs. Roofline time of a kernel is the larger of bytes over bandwidth
and FLOP over the data sheet's rate: an estimate of an eager step, never a measurement. CPU autocast
stands for CUDA's, whose list of fp32 operators is a little longer. With `--measure` on a machine
with a GPU the same table is timed, and whole steps (median of 20 after a warm-up): compiled, eager,
and the straightforward rendering of `bench/plain_step.py`.

Letters as in `codeseg.model.code.batch`.
"""

import argparse
import statistics
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.plain_step import plain_step
from codeseg.model.clip.encoder import FrozenClip
from codeseg.model.clip.prompts import NounPrompt
from codeseg.model.code.batch import Batch
from codeseg.model.code.codecomposition import CoDe
from codeseg.model.code.image_segmenter import GatedUpsampling, ImageSegmenter
from codeseg.model.code.text_segmenter import TextSegmenter
from codeseg.model.regions.recognition import RegionRecognizer
from codeseg.stages.training.flops import data_sheet, peak_flops
from codeseg.stages.training.loop import initial_state
from codeseg.stages.training.processes import Processes
from codeseg.stages.training.recipes import Recipe, resolve
from codeseg.stages.training.stepper import Stepper, hold_frozen

BANDWIDTH = {"NVIDIA H100 80GB HBM3": 3.0e12, "NVIDIA A100-SXM4-80GB": 1.8e12}
"""Bytes/s that large elementwise kernels reach, about nine tenths of the data sheet."""
ATTENDABLE = 0.8  # share of the data sheet's FLOP/s that large products reach
LAUNCH = 8e-6  # seconds a kernel that Python launches costs at least
CAPTION, NOUN = 16, 4  # tokens of a batch's longest caption and noun, rounded up as in training
PARTS: dict[str, tuple[type, str]] = {
    "decoder": (GatedUpsampling, "forward"),
    "rest of the image segmenter": (ImageSegmenter, "forward"),
    "masks": (CoDe, "_masks"),
    "mask logits": (ImageSegmenter, "mask_logits"),
    "highlighted images": (FrozenClip, "encode_image"),
    "trunk": (FrozenClip, "trunk"),
    "highlighted captions": (FrozenClip, "encode_embeddings"),
    "noun prompts": (NounPrompt, "forward"),
    "text segmenter": (TextSegmenter, "forward"),
    "regions": (RegionRecognizer, "loss"),
    "losses": (CoDe, "losses"),
    "gradient norm": (Stepper, "gradient_norm"),
    "optimizer": (Stepper, "update"),
}


NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "prim::")


@dataclass
class Cost:
    """Of a part of the step."""

    kernels: int = 0
    bytes: float = 0
    flop: float = 0
    seconds: float = 0


class Counter(TorchDispatchMode):
    """Counts what every operator costs, by part; backward belongs to the part that it undoes.

    Args:
        gpu: whose rates make seconds of bytes and FLOP.
        timed: measure the seconds instead, on the GPU at hand; `finish` adds them up.
    """

    def __init__(self, gpu: str, timed: bool = False) -> None:
        super().__init__()
        self._timed = timed
        self._events: list[tuple[Cost, Any, Any]] = []
        self._bandwidth, sheet = BANDWIDTH[gpu], data_sheet(gpu)
        assert sheet is not None
        self._rates = {2: sheet * ATTENDABLE, 4: sheet * ATTENDABLE / 2}  # TF32 is half of bf16
        self.parts: dict[str, Cost] = defaultdict(Cost)
        self.flop_by_type: dict[str, float] = defaultdict(float)
        self.syncs = 0
        self.live = self.peak = 0
        self._stack = ["elsewhere"]
        self._ranges: list[tuple[int, int, str]] = []
        self._storages: set[int] = set()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book what runs inside, and later its backward, under a name."""
        first = torch.autograd._get_sequence_nr()
        self._stack.append(name)
        yield
        self._stack.pop()
        self._ranges.append((first, torch.autograd._get_sequence_nr(), name))

    def _where(self) -> str:
        node = torch._C._current_autograd_node()
        if node is None:
            return self._stack[-1]
        number = node._sequence_nr()
        # Inner parts end, and are listed, before the outer ones.
        return next((n for a, b, n in self._ranges if a <= number < b), "elsewhere")

    def keep(self, tensor: Tensor) -> None:
        """Count a tensor's memory as long as it lives."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._storages:
            self._storages.add(key)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator on the fake tensors and count it."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            self.syncs += 1
            return func(*args, **kwargs) if self._timed else 1.0
        started = _moment() if self._timed else None
        out = func(*args, **kwargs)
        ended = _moment() if self._timed else None
        written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in written:
            self.keep(tensor)
        name = func._schema.name
        aliases = [r.alias_info for r in func._schema.returns]
        view = aliases and all(alias and not alias.is_write for alias in aliases)
        if view or name.startswith(NO_KERNEL):
            return out
        if name == "aten::detach" or (not read and not written):
            return out
        cost = self._book(func, args, kwargs, out, read, written)
        if self._timed:
            self._events.append((cost, started, ended))
        return out

    def finish(self) -> None:
        """Wait for the GPU and put what was measured in the place of the estimates."""
        torch.cuda.synchronize()
        for cost in self.parts.values():
            cost.seconds = 0
        for cost, started, ended in self._events:
            cost.seconds += started.elapsed_time(ended) / 1e3

    def _book(
        self, func: Any, args: Any, kwargs: Any, out: Any, read: list[Tensor], written: list[Tensor]
    ) -> Cost:
        moved = {id(t): t.numel() * t.element_size() for t in read if not _broadcast(t)}
        total = sum(moved.values()) + sum(t.numel() * t.element_size() for t in written)
        flop = _flop(func, args, kwargs, out)
        width = min((t.element_size() for t in read if t.is_floating_point()), default=4)
        if flop:
            self.flop_by_type["fp32" if width == 4 else "bf16"] += flop
        cost = self.parts[self._where()]
        cost.kernels += 1
        cost.bytes += total
        cost.flop += flop
        cost.seconds += max(total / self._bandwidth, flop / self._rates[4 if width == 4 else 2])
        return cost


def _moment() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _broadcast(tensor: Tensor) -> bool:
    return 0 in tensor.stride() and tensor.numel() > 1


def _flop(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    name = func._schema.name
    if "scaled_dot_product" in name:
        backward = "backward" in name
        q, k = args[1:3] if backward else args[:2]
        return (10 if backward else 4) * q.numel() * k.shape[-2]
    formula = flop_registry.get(func.overloadpacket)
    return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


def fake(module: nn.Module, mode: FakeTensorMode, device: str = "cpu") -> None:
    """Replace a module's parameters and buffers by fake ones on a device."""
    known: dict[int, Any] = {}
    for inner in module.modules():
        for table in (inner._parameters, inner._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in known:
                    moved = mode.from_tensor(value).detach().to(device)
                    if isinstance(value, nn.Parameter):
                        moved = nn.Parameter(moved, requires_grad=value.requires_grad)
                    known[id(value)] = moved
                table[name] = known[id(value)]


def random_clip(recipe: Recipe) -> FrozenClip:
    """Make the recipe's CLIP at random weights, with the activation of its pretrained ones."""
    quick = "-quickgelu" if recipe.clip.pretrained == "openai" else ""
    return FrozenClip.load(recipe.clip.model + quick, "random")


def make_batch(
    clip: FrozenClip,
    recipe: Recipe,
    B: int,
    tokens: str,
    L: int = CAPTION,
    M: int = NOUN,
    U: int = 0,
) -> Batch:
    """Make a batch of a recipe's shapes, every noun distinct without U. Zeros, or fake ones."""
    J, P = recipe.model.nouns_per_image, 1 + (clip.image_size // clip.patch_size) ** 2
    N, whole = J * B, torch.int64
    U = U or N
    batch = Batch(
        pixels_BCHW=torch.zeros(B, 3, clip.image_size, clip.image_size, dtype=torch.uint8),
        caption_tokens_BL=torch.zeros(B, L, dtype=whole),
        caption_lengths_B=torch.zeros(B, dtype=whole) + L,
        labels_BL=torch.zeros(B, L, dtype=whole),
        noun_tokens_UM=torch.zeros(U, M, dtype=whole),
        noun_lengths_U=torch.zeros(U, dtype=whole) + M,
        noun_index_N=torch.zeros(N, dtype=whole),
        knowledge_UC=torch.zeros(U, clip.embed_dim),
        caption_states_BLT=torch.zeros(B, L, clip.text_width, dtype=torch.float16),
    )
    if tokens == "int8":
        batch = replace(
            batch,
            image_tokens_int8_BPD=torch.zeros(B, P, clip.width, dtype=torch.int8),
            image_token_scale_BP=torch.zeros(B, P),
        )
    elif tokens == "fp16":
        half = torch.zeros(B, P, clip.width, dtype=torch.float16)
        batch = replace(batch, image_tokens_BPD=half)
    if recipe.model.region_weight:
        batch = replace(batch, regions_BQ=torch.zeros(B, P - 1, dtype=whole), regions=16)
    return batch


def step(stepper: Stepper, batch: Batch) -> None:
    """Do what the trainer does between two log rows."""
    terms = stepper.forward_backward([batch])
    terms["grad_norm"] = stepper.gradient_norm()
    stepper.all_reduce(terms, stop=False)
    stepper.update(terms["grad_norm"])


def stepper_of(code: CoDe, recipe: Recipe, phase: int, device: torch.device) -> Stepper:
    """Make the trainer's stepper, in a phase, as it is on a GPU."""
    state = initial_state(code, recipe.train, device)
    for group in state.optimizer.param_groups:
        group["fused"] = True
    stepper = Stepper(state, recipe.train, Processes(0, 1, device))
    stepper.reads_each_step = False
    state.step = 0 if phase == 1 else recipe.train.phase1_steps
    code.set_phase(1 if phase == 1 else 2)
    return stepper


def count(recipe: Recipe, B: int, phase: int, tokens: str, gpu: str) -> Counter:
    """Count a step of B images; its second one, when the optimizer has its moments."""
    code = CoDe(random_clip(recipe), recipe.model)
    hold_frozen(code, recipe.train.precision)
    with FakeTensorMode() as mode, mock.patch("codeseg.model.device.is_gpu", lambda tensor: True):
        fake(code, mode)
        stepper = stepper_of(code, recipe, phase, torch.device("cpu"))
        batch = make_batch(code.clip, recipe, B, tokens)
        step(stepper, batch)
        counter = Counter(gpu)
        held = [*code.parameters(), *code.buffers(), *tree_leaves(vars(batch))]
        held += [t for s in stepper._state.optimizer.state.values() for t in s.values()]
        for tensor in held:
            if isinstance(tensor, Tensor):
                counter.keep(tensor)
        stepper._state.optimizer.zero_grad()
        with counting(counter):
            step(stepper, batch)
    return counter


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Count, with every part's function marked."""
    patches = []
    for name, (owner, method) in PARTS.items():
        patches.append(mock.patch.object(owner, method, _marked(counter, name, owner, method)))
    for patch in patches:
        patch.start()
    try:
        with counter:
            yield
    finally:
        for patch in patches:
            patch.stop()


def _marked(counter: Counter, name: str, owner: type, method: str) -> Callable[..., Any]:
    original = getattr(owner, method)

    def run(*args: Any, **kwargs: Any) -> Any:
        with counter.part(name):
            return original(*args, **kwargs)

    return run


def show(counter: Counter, B: int) -> None:
    """Print the parts, the largest first, and the whole."""
    whole = Cost()
    print(f"{'part':30} {'kernels':>8} {'GB':>8} {'TFLOP':>8} {'ms':>8}")
    for name, cost in sorted(counter.parts.items(), key=lambda item: -item[1].seconds):
        print(_line(name, cost))
        for field in vars(whole):
            setattr(whole, field, getattr(whole, field) + getattr(cost, field))
    print(_line("all", whole))
    by_type = ", ".join(f"{v / 1e12:.2f} in {k}" for k, v in sorted(counter.flop_by_type.items()))
    print(
        f"TFLOP {by_type}; peak {counter.peak / 1e9:.1f} GB; host syncs {counter.syncs}; launches "
        f"at least {whole.kernels * LAUNCH * 1e3:.0f} ms; at most "
        f"{B / max(whole.seconds, whole.kernels * LAUNCH):,.0f} images/s\n"
    )


def _line(name: str, cost: Cost) -> str:
    return (
        f"{name:30} {cost.kernels:8,} {cost.bytes / 1e9:8.2f} {cost.flop / 1e12:8.3f} "
        f"{cost.seconds * 1e3:8.2f}"
    )


def measure(recipe: Recipe, B: int, phase: int, tokens: str, gpu: str, steps: int = 20) -> None:
    """Time real steps on the GPU at hand and print: whole ones, and an eager one by part."""
    device = torch.device("cuda")
    rate = peak_flops(device, recipe.train.precision)
    for way in ("compiled", "eager", "straightforward")[: 3 if recipe.model.masks else 2]:
        torch.cuda.reset_peak_memory_stats()
        code = CoDe(random_clip(recipe), recipe.model).to(device)
        if way != "straightforward":
            hold_frozen(code, recipe.train.precision)
        train = replace(recipe.train, compile=way == "compiled")
        stepper = stepper_of(code, replace(recipe, train=train), phase, device)
        batch = make_batch(code.clip, recipe, B, tokens).to(device)
        stepper.enter_phase(batch)
        if way == "straightforward":
            stepper._model = partial(plain_step, code)  # type: ignore[assignment]
        for _ in range(5):
            step(stepper, batch)
        moments = [_moment()]
        for _ in range(steps):
            step(stepper, batch)
            moments.append(_moment())
        torch.cuda.synchronize()
        median = statistics.median(a.elapsed_time(b) for a, b in pairwise(moments)) / 1e3
        used = f", MFU {stepper.flops / median / rate:.1%}" if rate else ""
        print(
            f"{way} on {torch.cuda.get_device_name(device)}: {median * 1e3:.1f} ms, "
            f"{B / median:,.0f} images/s{used if way != 'straightforward' else ''}, "
            f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
        )
        if way == "eager":
            with counting(counter := Counter(gpu, timed=True)):
                step(stepper, batch)
            counter.finish()
            show(counter, B)


def main() -> None:
    """Count, print, and measure where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="code_vitb16")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--phase", type=int, choices=(1, 2), default=2)
    parser.add_argument("--tokens", choices=("int8", "fp16", "none"), default="int8")
    parser.add_argument("--gpu", choices=list(BANDWIDTH), default="NVIDIA H100 80GB HBM3")
    parser.add_argument("--measure", action="store_true", help="time it on the GPU at hand too")
    arguments = parser.parse_args()
    recipe = resolve(arguments.recipe)
    for B in arguments.batch:
        print(
            f"{recipe.name}, {B} images, phase {arguments.phase}, {arguments.tokens} tokens, "
            f"estimated for {arguments.gpu}"
        )
        show(count(recipe, B, arguments.phase, arguments.tokens, arguments.gpu), B)
        if arguments.measure:
            measure(recipe, B, arguments.phase, arguments.tokens, arguments.gpu)


if __name__ == "__main__":
    main()
