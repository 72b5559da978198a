"""Train the tiny ViT of the embedded default on drawn scenes, no captions, no masks; weights out.

    OMP_NUM_THREADS=1 python -m bench.self_supervised --out model/weights/storybook_vit.safetensors

Two losses of the last layer's patch tokens. Contrast: the mean token inside a small box of a scene
must fit the mean token of that box cut out alone, in other colors, and no other box of the batch
(InfoNCE); since the cut box does not show the rest of the scene, a token must say what lies at its
place. Colors: the first 48 numbers of a token must be the colors of its patch in 4x4 cells, so that
tokens differ where colors do, at the borders of regions. No scene is seen twice. Step i's batch is
a pure function of i, so a killed training continues from its last saved state to the same weights.

Letters: B scenes, L boxes of each, side h of the grid, Q = h*h patches, D width, P patch size.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from codeseg.model.clip.weights import WEIGHTS
from codeseg.pipeline.storybook.scenes import SIZE, draw_scene

VIT_SEED = 4  # a world of its own: no scene of training, of choosing or of a benchmark
BOXES = 4  # of a scene
BOX = 32  # pixels of a cut box's side
TEMPERATURE = 0.1
CELLS = 4  # a side, of a patch's colors
COLOR_SCALE = 4.0  # of colors from -1 to 1 in a token; its other numbers have a deviation near 1
COLOR_WEIGHT = 2.0
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Squares:
    """Squares of pictures in coordinates of -1..1, some of them mirrored."""

    center_N2: NDArray[np.float64]
    half_N: NDArray[np.float64]
    flip_N: NDArray[np.float64]
    """1, or -1: mirrored."""

    @classmethod
    def draw(cls, half_N: NDArray[np.float64], rng: np.random.Generator) -> "Squares":
        """Place squares at random inside their pictures and mirror half of them."""
        center_N2 = rng.uniform(-1, 1, (len(half_N), 2)) * (1 - half_N)[:, None]
        return cls(center_N2, half_N, np.where(rng.random(len(half_N)) < 0.5, -1.0, 1.0))

    def outer(self, inner: "Squares") -> "Squares":
        """Return squares inside these, the same number in each, in the pictures' coordinates."""
        center_N2, half_N, flip_N = (
            values.repeat(len(inner.half_N) // len(self.half_N), axis=0)
            for values in (self.center_N2, self.half_N, self.flip_N)
        )
        moved_N2 = inner.center_N2 * half_N[:, None] * np.stack([flip_N, np.ones_like(flip_N)], -1)
        return Squares(center_N2 + moved_N2, inner.half_N * half_N, inner.flip_N)

    def cut(self, images_NCHW: Tensor, size: int) -> Tensor:
        """Return what the squares show, (N, C, size, size)."""
        theta_N23 = np.zeros((len(self.half_N), 2, 3), dtype=np.float32)
        theta_N23[:, 0, 0], theta_N23[:, 1, 1] = self.half_N * self.flip_N, self.half_N
        theta_N23[:, :, 2] = self.center_N2
        shape = [len(theta_N23), 3, size, size]
        grid = F.affine_grid(torch.from_numpy(theta_N23), shape, align_corners=False)
        return F.grid_sample(images_NCHW, grid, "bilinear", "reflection", align_corners=False)


class Network(nn.Module):
    """The ViT and, for training only, what maps its patch tokens to embeddings."""

    patch_size: int

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vit: Any = timm.create_model(**config, num_classes=0, dynamic_img_size=True)
        width: int = config["embed_dim"]
        self.patch_size = config["patch_size"]
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch tokens (B, Q, D) of pictures from -1 to 1, and the loss of their colors."""
        with torch.autocast("cpu", torch.bfloat16):
            tokens_BQD = self.vit.forward_features(images_BCHW)[:, 1:].float()
        cells = F.avg_pool2d(images_BCHW, self.patch_size // CELLS)
        colors_BQc = COLOR_SCALE * F.unfold(cells, CELLS, stride=CELLS).mT
        return tokens_BQD, F.l1_loss(tokens_BQD[..., : colors_BQc.shape[-1]], colors_BQc)

    def embed(self, tokens_ND: Tensor) -> Tensor:
        """Return unit embeddings of mean tokens."""
        return F.normalize(self.head(tokens_ND), dim=-1)


def recolor(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn each image's hue, change saturation, contrast and brightness; 0..1 becomes -1..1."""
    B = len(images_BCHW)
    grey = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = rng.normal(0, 0.3, B)[:, None, None]  # radians around the axis of greys
    rotate = np.cos(turn) * np.eye(3) + np.sin(turn) * axis + (1 - np.cos(turn)) * grey
    saturation = rng.uniform(0.3, 1.5, B)[:, None, None]
    saturation[rng.random(B) < 0.15] = 0
    matrix = (saturation * (np.eye(3) - grey) + grey) @ rotate
    matrix = matrix * rng.uniform(0.6, 1.3, B)[:, None, None]
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (B, 1, 1, 1))).float()
    turned = torch.einsum("bij,bjhw->bihw", torch.from_numpy(matrix).float(), images_BCHW - 0.5)
    return 2 * (turned + shift).clamp(-0.5, 0.5)


def overlapping(boxes: Squares) -> Tensor:
    """Return which pairs of different boxes share pixels of a scene: bool (N, N)."""
    center_N2, half_N = torch.from_numpy(boxes.center_N2), torch.from_numpy(boxes.half_N)
    scene_N = torch.arange(len(half_N)) // BOXES
    near_NN2 = (center_N2[:, None] - center_N2).abs() < (half_N[:, None] + half_N)[..., None]
    touch_NN: Tensor = near_NN2.all(-1) & (scene_N[:, None] == scene_N)
    return touch_NN.fill_diagonal_(False)


def losses(network: Network, scenes_BHWC: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return the losses of contrast and of colors, (2,)."""
    B, L = len(scenes_BHWC), BOXES
    scenes = scenes_BHWC.permute(0, 3, 1, 2).float() / 255
    view = Squares.draw(np.sqrt(rng.uniform(0.4, 1.0, B)), rng)
    box = Squares.draw(rng.uniform(0.25, 0.5, B * L), rng)  # inside the view, of its coordinates
    cells = (np.arange(4) + 0.5) / 2 - 1
    inside_NK2 = box.center_N2[:, None] + box.half_N[:, None, None] * np.stack(
        np.meshgrid(cells, cells), -1
    ).reshape(1, 16, 2)
    boxes = view.outer(box)

    tokens_BQD, colors = network(recolor(view.cut(scenes, size), rng))
    tokens_NQD, colors_box = network(recolor(boxes.cut(scenes.repeat_interleave(L, 0), BOX), rng))
    side = size // network.patch_size
    map_BDhh = tokens_BQD.mT.reshape(B, -1, side, side)
    points = torch.from_numpy(inside_NK2).float().view(B, L, 16, 2)
    found_BDLK = F.grid_sample(map_BDhh, points, "bilinear", "border", align_corners=False)
    seen_ND = network.embed(found_BDLK.mean(-1).mT.flatten(0, 1))
    cut_ND = network.embed(tokens_NQD.mean(1))
    scores_NN = seen_ND @ cut_ND.T / TEMPERATURE
    scores_NN = scores_NN.masked_fill(overlapping(boxes), -torch.inf)
    target_N = torch.arange(B * L)
    contrast = F.cross_entropy(scores_NN, target_N) + F.cross_entropy(scores_NN.T, target_N)
    return torch.stack([contrast / 2, COLOR_WEIGHT * (colors + colors_box)])


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the weights go.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4000,
    batch_size: Annotated[int, typer.Option(help="Scenes a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak, after 100 steps.")] = 1e-3,
    save_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
    stop: Annotated[int | None, typer.Option(help="Stop after this step, to go on later.")] = None,
) -> None:
    """Train from scratch, or go on from OUT's saved state."""
    torch.manual_seed(VIT_SEED)
    network = Network(json.loads((WEIGHTS / "storybook_vit.json").read_text()))
    decay = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    state_file, start, spent = out.with_suffix(".state"), 0, 0.0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        start, spent = saved["step"], saved["seconds"]
    began = time.process_time() - spent
    for step in range(start, steps if stop is None else min(stop, steps)):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * cosine
        rng = np.random.Generator(np.random.PCG64([VIT_SEED, step, 1]))
        indices = range(step * batch_size, (step + 1) * batch_size)
        scenes = np.stack([np.asarray(draw_scene(VIT_SEED, i).image) for i in indices])
        size = SIZE if step % 4 == 3 else 64
        with sdpa_kernel(SDPBackend.MATH):
            contrast, colors = losses(network, torch.from_numpy(scenes), size, rng)
        optimizer.zero_grad()
        (contrast + colors).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seconds = time.process_time() - began
        if (step + 1) % 20 == 0:
            said = f"contrast {contrast:.3f} colors {colors:.3f}"
            print(f"step {step + 1}/{steps} {said} {seconds:.0f} s of processor", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            save(state | {"step": step + 1, "seconds": seconds}, network, out)


def save(state: dict[str, Any], network: Network, out: Path) -> None:
    """Write the state to go on from, and the ViT as fp16, each whole or not at all."""
    partial = out.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(out.with_suffix(".state"))
    weights = {k: v.half().contiguous() for k, v in network.vit.state_dict().items()}
    save_file(weights, partial)
    partial.replace(out)


if __name__ == "__main__":
    app()
