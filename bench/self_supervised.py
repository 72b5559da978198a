"""Train the tiny ViT of the embedded default on drawn scenes, no captions, no masks; weights out.

    python -m bench.self_supervised --out model/weights/storybook_vit.safetensors

Self-distillation (DINO, and iBOT's hidden patches, both with Sinkhorn's balanced targets): a
student that sees a crop with patches hidden must say what its teacher, its own moving average, says
of the whole crop in other colors and of another crop of the scene. It also paints the hidden
patches' pixels, which gives the first steps something to learn. No scene is seen twice. Step i's
batch is a pure function of i, so a killed training goes on where it saved, to the same weights.
"""

import copy
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from codeseg.model.clip.weights import WEIGHTS
from codeseg.pipeline.storybook.scenes import SIZE, draw_scene

VIT_SEED = 4  # a world of its own: no scene of training, of choosing or of a benchmark
LOCAL = 32  # pixels of a small crop's side
LOCALS = 2  # small crops of a scene
PROTOTYPES = 256
PIXEL_WEIGHT = 4.0
STUDENT_HEAT, TEACHER_HEAT = 0.1, 0.05
app = typer.Typer(add_completion=False, help=__doc__)


class Network(nn.Module):
    """The ViT and, for training only, what maps its tokens to scores of prototypes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vit: Any = timm.create_model(**config, num_classes=0, dynamic_img_size=True)
        width = self.vit.num_features
        self.hidden = nn.Parameter(torch.zeros(width))
        self.paint = nn.Linear(width, 3 * config["patch_size"] ** 2)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(2)
        )
        self.prototypes = nn.ParameterList(torch.randn(PROTOTYPES, 64) for _ in range(2))

    def forward(
        self, images_BCHW: Tensor, chosen_BQ: Tensor | None = None, *, hide: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return prototypes' scores of the class token (B, K) and of the chosen patches (M, K).

        And the pixels that the chosen patches are thought to hold, (M, 3 * patch * patch).

        Args:
            images_BCHW: normalized.
            chosen_BQ: bool; None: none.
            hide: put one learned token in the chosen patches' places.
        """
        vit = self.vit
        x_BhwD = vit.patch_embed(images_BCHW)
        if hide and chosen_BQ is not None:
            hidden_D = self.hidden.to(x_BhwD.dtype)
            x_BhwD = torch.where(chosen_BQ.view(x_BhwD.shape[:3])[..., None], hidden_D, x_BhwD)
        tokens_BPD = vit.norm(vit.blocks(vit._pos_embed(x_BhwD)))
        patches_MD = tokens_BPD[:0, 0] if chosen_BQ is None else tokens_BPD[:, 1:][chosen_BQ]
        painted = self.paint(patches_MD).float()
        return self._score(0, tokens_BPD[:, 0]), self._score(1, patches_MD), painted

    def _score(self, which: int, tokens: Tensor) -> Tensor:
        found = F.normalize(self.heads[which](tokens).float(), dim=-1)
        return found @ F.normalize(self.prototypes[which].float(), dim=-1).T


def crop(
    scenes_BHWC: Tensor, size: int, area: tuple[float, float], rng: np.random.Generator
) -> Tensor:
    """Cut a square out of each scene, resize it, mirror half of them: float (B, 3, size, size)."""
    B = len(scenes_BHWC)
    side_B = np.sqrt(rng.uniform(*area, B))
    centre_B2 = rng.uniform(-1, 1, (B, 2)) * (1 - side_B)[:, None]
    flip_B = np.where(rng.random(B) < 0.5, -1.0, 1.0)
    theta_B23 = np.zeros((B, 2, 3), dtype=np.float32)
    theta_B23[:, 0, 0], theta_B23[:, 1, 1] = side_B * flip_B, side_B
    theta_B23[:, :, 2] = centre_B2
    grid = F.affine_grid(torch.from_numpy(theta_B23), [B, 3, size, size], align_corners=False)
    images = scenes_BHWC.permute(0, 3, 1, 2).float() / 255
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)


def recolor(images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn each image's hue, change saturation, contrast and brightness; normalize to -1..1."""
    B = len(images_BCHW)
    grey = np.full((3, 3), 1 / 3)
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = rng.normal(0, 0.25, B)[:, None, None]  # radians round the axis of greys
    rotate = np.cos(turn) * np.eye(3) + np.sin(turn) * axis + (1 - np.cos(turn)) * grey
    saturation = rng.uniform(0.5, 1.4, B)[:, None, None]
    saturation[rng.random(B) < 0.1] = 0
    matrix = (saturation * (np.eye(3) - grey) + grey) @ rotate
    matrix = matrix * rng.uniform(0.75, 1.25, B)[:, None, None]
    shift = torch.from_numpy(rng.uniform(-0.12, 0.12, (B, 1, 1, 1))).float()
    centred = images_BCHW - 0.5
    turned = torch.einsum("bij,bjhw->bihw", torch.from_numpy(matrix).float(), centred)
    return 2 * (turned + shift).clamp(-0.5, 0.5)


def hide(B: int, side: int, rng: np.random.Generator) -> Tensor:
    """Choose rectangles of patches, 20-60 % of every other image: bool (B, Q)."""
    hidden = np.zeros((B, side, side), dtype=bool)
    for image in hidden[::2]:
        share = rng.uniform(0.2, 0.6)
        while image.mean() < share:
            h, w = rng.integers(1, side // 2 + 1, 2)
            y, x = rng.integers(0, side - h + 1), rng.integers(0, side - w + 1)
            image[y : y + h, x : x + w] = True
    return torch.from_numpy(hidden).flatten(1)


def balanced(scores_NK: Tensor) -> Tensor:
    """Return the teacher's targets: softmax, prototypes used equally (Sinkhorn, 3 rounds)."""
    share_NK = (scores_NK / TEACHER_HEAT).exp()
    for _ in range(3):
        share_NK = share_NK / share_NK.sum(0)
        share_NK = share_NK / share_NK.sum(1, keepdim=True)
    return share_NK


def cross_entropy(target_NK: Tensor, scores_NK: Tensor) -> Tensor:
    """Return the mean cross entropy of the student's scores."""
    return -(target_NK * (scores_NK / STUDENT_HEAT).log_softmax(-1)).sum(-1).mean()


def losses(student: Network, teacher: Network, scenes_BHWC: Tensor, size: int, rng: Any) -> Tensor:
    """Return the losses of class tokens, of hidden patches and of their pixels, (3,)."""
    B = len(scenes_BHWC)
    crops = torch.cat([crop(scenes_BHWC, size, (0.4, 1.0), rng) for _ in range(2)])
    hide_2BQ = hide(2 * B, size // 8, rng)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image_2BK, patch_MK, _ = teacher(recolor(crops, rng), hide_2BQ)
    small = torch.cat([crop(scenes_BHWC, LOCAL, (0.08, 0.4), rng) for _ in range(LOCALS)])
    colored = recolor(crops, rng)
    with torch.autocast("cpu", torch.bfloat16):
        seen_2BK, found_MK, painted = student(colored, hide_2BQ, hide=True)
        local_LBK, _, _ = student(recolor(small, rng))
    target_2BK = balanced(image_2BK)
    views = [*seen_2BK.split(B), *local_LBK.split(B)]
    pairs = [
        cross_entropy(target, view)
        for i, target in enumerate(target_2BK.split(B))
        for j, view in enumerate(views)
        if i != j
    ]
    patch = cross_entropy(balanced(patch_MK), found_MK)
    pixels_2BQp = F.unfold(colored, 8, stride=8).mT
    pixel = F.l1_loss(painted, pixels_2BQp[hide_2BQ])
    return torch.stack([torch.stack(pairs).mean(), patch, PIXEL_WEIGHT * pixel])


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Where the weights go.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 2500,
    batch_size: Annotated[int, typer.Option(help="Scenes a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak, after 100 steps.")] = 1e-3,
    save_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
    stop: Annotated[int | None, typer.Option(help="Stop after this step, to go on later.")] = None,
) -> None:
    """Train from scratch, or go on from OUT's saved state."""
    torch.manual_seed(VIT_SEED)
    config = json.loads((WEIGHTS / "storybook_vit.json").read_text())
    student = Network(config)
    teacher = copy.deepcopy(student).requires_grad_(False)
    decay = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    state_file, start, seconds = out.with_suffix(".state"), 0, 0.0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        student.load_state_dict(saved["student"])
        teacher.load_state_dict(saved["teacher"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds = saved["step"], saved["seconds"]
    began = time.process_time() - seconds
    for step in range(start, steps if stop is None else min(stop, steps)):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * cosine
        rng = np.random.Generator(np.random.PCG64([VIT_SEED, step, 1]))
        indices = range(step * batch_size, (step + 1) * batch_size)
        scenes = np.stack([np.asarray(draw_scene(VIT_SEED, i).image) for i in indices])
        size = SIZE if step % 8 == 7 else 64
        with sdpa_kernel(SDPBackend.MATH):
            terms = losses(student, teacher, torch.from_numpy(scenes), size, rng)
        optimizer.zero_grad()
        terms.sum().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        keep = 1 - 0.01 * cosine
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        seconds = time.process_time() - began
        if (step + 1) % 10 == 0:
            said = " ".join(
                f"{name} {term:.3f}"
                for name, term in zip(("image", "patch", "pixel"), terms.tolist(), strict=True)
            )
            print(f"step {step + 1}/{steps} {said} {seconds:.0f} s of processor", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save(student, teacher, optimizer, step + 1, seconds, out)


def save(
    student: Network, teacher: Network, optimizer: Any, step: int, seconds: float, out: Path
) -> None:
    """Write the state to go on from, and the teacher's ViT as fp16, each whole or not at all."""
    state = {
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    partial = out.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(out.with_suffix(".state"))
    weights = {k: v.half().contiguous() for k, v in teacher.vit.state_dict().items()}
    save_file(weights, partial)
    partial.replace(out)


if __name__ == "__main__":
    app()
