"""Train and evaluate the embedded tiny CLIP: drawn scenes and captions in, weights out.

    python -m bench.storybook_clip train --out model/weights/storybook.safetensors
    python -m bench.storybook_clip judge model/weights/storybook.safetensors

This trains a plain CLIP (symmetric InfoNCE) on fresh storybook scenes, without masks; no scene
occurs twice. Identical captions in a batch are each other's positives: "a cat" belongs to every
cat. Only the rows of the token table that captions use are trained; the others are set to their
mean, a meaningless word. Step i's batch is a pure function of i, so a killed training resumes from
its last saved state.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset

from codeseg.model.clip.dense import dense_embedding
from codeseg.model.clip.encoder import FrozenClip
from codeseg.pipeline.storybook.scenes import (
    BENCHMARK_SEEDS,
    CLASSES,
    CLIP_SEED,
    DEV_SEED,
    THING_NAMES,
    draw_scene,
)

PROMPT = "a {}"
LONGEST = 24  # tokens; no caption is longer
app = typer.Typer(add_completion=False, help=__doc__)


def crop_scene(image: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """Return a square crop of 70-100 % of the side, resized to `size`, mirrored half the time."""
    side = image.width * rng.uniform(0.7, 1.0)
    left, top = rng.uniform(0, image.width - side, size=2)
    box = (left, top, left + side, top + side)
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


class SceneBatches(IterableDataset[tuple[Tensor, list[str]]]):
    """Batches of (uint8 pixels (B, 3, S, S), captions), drawn on demand."""

    def __init__(self, start: int, steps: int, batch_size: int, image_size: int) -> None:
        self.start, self.steps = start, steps
        self.batch_size, self.image_size = batch_size, image_size

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Draw batch after batch; with one worker only, the order is that of the steps."""
        for step in range(self.start, self.steps):
            pixels, captions = [], []
            for index in range(step * self.batch_size, (step + 1) * self.batch_size):
                scene = draw_scene(CLIP_SEED, index)
                rng = np.random.Generator(np.random.PCG64([CLIP_SEED, index, 1]))
                pixels.append(np.asarray(crop_scene(scene.image, rng, self.image_size)))
                captions.append(scene.caption)
            yield torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), captions


def used_tokens(clip: FrozenClip) -> Tensor:
    """Return the ids of all tokens in the first 20,000 captions and the class prompts, sorted."""
    texts = {draw_scene(CLIP_SEED, index, size=8).caption for index in range(20_000)}
    texts |= {PROMPT.format(name) for name in CLASSES}
    used: Tensor = torch.unique(clip.tokenize(sorted(texts)))
    return used


class CompactTokens(nn.Module):
    """A token table of only the used rows; AdamW over all 49,408 would dominate a step."""

    def __init__(self, table: Tensor, used: Tensor) -> None:
        super().__init__()
        self.used = used
        self.place = torch.zeros(len(table), dtype=torch.long)
        self.place[used] = torch.arange(len(used))
        self.rows = nn.Parameter(table[used].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up embeddings; an unknown token gets the first row (padding)."""
        return F.embedding(self.place[tokens], self.rows)

    def full(self, size: int) -> Tensor:
        """Return the whole table, with unused rows at the mean of the used ones."""
        table = self.rows.mean(dim=0).expand(size, -1).clone()
        table[self.used] = self.rows
        return table


def contrastive_loss(
    image_BC: Tensor, text_BC: Tensor, scale: Tensor, captions: list[str]
) -> Tensor:
    """Return symmetric InfoNCE whose targets are spread over equal captions."""
    ids: dict[str, int] = {}
    number_B = torch.tensor([ids.setdefault(caption, len(ids)) for caption in captions])
    target_BB = (number_B[:, None] == number_B).float()
    target_BB = target_BB / target_BB.sum(dim=1, keepdim=True)
    logits_BB = scale.clamp(max=math.log(100)).exp() * image_BC @ text_BC.T
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def save_weights(clip: open_clip.CLIP, tokens: CompactTokens, out: Path) -> None:
    """Write the open_clip state as fp16 safetensors, atomically."""
    state = {k: v for k, v in clip.state_dict().items() if not k.startswith("token_embedding")}
    state["token_embedding.weight"] = tokens.full(clip.vocab_size)
    state = {k: v.detach().to(torch.float16).contiguous() for k, v in state.items()}
    partial = out.with_suffix(".partial")
    save_file(state, partial)
    partial.replace(out)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="File for the weights.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1900,
    batch_size: Annotated[int, typer.Option(help="Scenes per step.")] = 256,
    learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate, after 200 warm-up steps.")
    ] = 1.5e-3,
    save_every: Annotated[int, typer.Option(help="Steps between saved states.")] = 100,
) -> None:
    """Train from scratch, or resume from OUT's saved state."""
    frozen = FrozenClip.load("storybook", "random:0")
    clip: open_clip.CLIP = frozen.clip
    used = used_tokens(frozen)
    clip.requires_grad_(True)
    table = CompactTokens(clip.token_embedding.weight.detach(), used)
    clip.token_embedding = table
    decay = [p for p in clip.parameters() if p.ndim > 1]
    plain = [p for p in clip.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    state_file, start = out.with_suffix(".state"), 0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        clip.load_state_dict(saved["clip"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    loader = DataLoader(
        SceneBatches(start, steps, batch_size, frozen.image_size), batch_size=None, num_workers=1
    )
    for step, (pixels, captions) in enumerate(loader, start=start):
        warm, rest = (step + 1) / 200, step / steps
        rate = learning_rate * min(1.0, warm) * (0.5 + 0.5 * math.cos(math.pi * rest))
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens_BL = frozen.tokenize(captions)[:, :LONGEST]
        # On a CPU and short sequences, plain attention beats the fused form: 0.46 s against 0.8 s.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image_BC = frozen.encode_image(frozen.normalize(pixels))
            text_BC = frozen.encode_text(tokens_BL)
        loss = contrastive_loss(image_BC.float(), text_BC.float(), clip.logit_scale, captions)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{steps} loss {loss.item():.3f} lr {rate:.2e}", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {
                "clip": clip.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            partial = state_file.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(state_file)
            save_weights(clip, table, out)


@torch.inference_mode()
def judge_weights(clip: FrozenClip, seed: int, count: int) -> dict[str, float]:
    """Return image-level precision and MaskCLIP mIoU on scenes of a world not trained on.

    A noun's precision at k: rank the scenes by similarity with "a NOUN"; take the share of the
    first k that show it, where k scenes do. The result is the mean over all classes. MaskCLIP mIoU:
    the argmax over all classes of patch embedding · "a NOUN", bilinearly resized; and the same for
    things with background, where a pixel whose best class is a ground counts as background.
    """
    text_KC = clip.encode_text(clip.tokenize([PROMPT.format(name) for name in CLASSES]))
    K, things = len(CLASSES), len(THING_NAMES)
    scores, shown = [], []
    confusion, confusion_things = torch.zeros(K, K), torch.zeros(things + 1, things + 1)
    for index in range(count):
        scene = draw_scene(seed, index)
        size = (clip.image_size, clip.image_size)
        small = np.array(scene.image.resize(size, Image.Resampling.BILINEAR))
        image = clip.normalize(torch.from_numpy(small).permute(2, 0, 1)[None])
        scores.append(clip.encode_image(image)[0] @ text_KC.T)
        label = torch.from_numpy(scene.label.astype(np.int64))
        share_K = torch.bincount(label.flatten(), minlength=K) / label.numel()
        shown.append(share_K > 0.01)
        dense = dense_embedding(clip, [clip.trunk(image)], clip.grid(image), "maskclip")
        logits = torch.einsum("bchw,kc->bkhw", dense, text_KC)
        logits_KHW = F.interpolate(logits, label.shape, mode="bilinear")[0]
        found = logits_KHW.argmax(dim=0)
        confusion += torch.bincount((label * K + found).flatten(), minlength=K * K).view(K, K)
        truth, guess = (torch.where(m < things, m + 1, 0) for m in (label, found))
        pairs = (truth * (things + 1) + guess).flatten()
        confusion_things += torch.bincount(pairs, minlength=(things + 1) ** 2).view(things + 1, -1)
    score_NK, shown_NK = torch.stack(scores), torch.stack(shown)
    precision = []
    for k in range(K):
        total = int(shown_NK[:, k].sum())
        if total:
            precision.append(shown_NK[score_NK[:, k].topk(total).indices, k].float().mean())
    return {
        "precision": 100 * torch.stack(precision).mean().item(),
        "miou_scenes": _mean_iou(confusion),
        "miou_things": _mean_iou(confusion_things),
    }


def _mean_iou(confusion_KK: Tensor) -> float:
    hit = confusion_KK.diagonal()
    union = confusion_KK.sum(0) + confusion_KK.sum(1) - hit
    return 100 * (hit / union.clamp(min=1)).mean().item()


@app.command()
def judge(
    weights: Annotated[Path, typer.Argument(help="Weight file of the storybook CLIP.")],
    count: Annotated[int, typer.Option(help="Held-out scenes per world.")] = 1000,
) -> None:
    """Print precision and MaskCLIP mIoU on the development world and the held-out worlds."""
    clip = FrozenClip.load("storybook", str(weights))
    for name, seed in {"development": DEV_SEED, **BENCHMARK_SEEDS}.items():
        scores = judge_weights(clip, seed, count)
        print(name, " ".join(f"{key} {value:.1f}" for key, value in scores.items()), flush=True)


if __name__ == "__main__":
    app()
