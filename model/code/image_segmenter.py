"""The image segmenter F^v (METHOD §2): trunk tokens in, pixel embedding and mask logits out.

Letters: B images, P = 1 + h*w trunk tokens (class token first), D vision width, C joint width,
h w patch grid, H = 4h and W = 4w the mask's rows and columns, N texts.
Intermediate maps are channels-last, (B, rows, columns, D), so that a 1x1 convolution is a matrix
product and a LayerNorm over channels needs no transposition.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeseg.model import device
from codeseg.model.clip.blocks import run_dense_block
from codeseg.model.clip.encoder import FrozenClip

BAND_ROWS = 8  # rows that the last stage reads at a time; it makes twice as many
STAGES = 2  # each doubles the resolution
MASK_PIXELS = 2**STAGES  # rows, and columns, of mask pixels per patch


class GatedUpsampling(nn.Module):
    """One decoder stage: y = up(x); y + tanh(gate) * Conv3x3(GELU(LayerNorm(y))) (METHOD §2.3).

    It is computed at the low resolution. LayerNorm and GELU are per pixel and commute with nearest
    upsampling. A row of Conv3 over the doubled rows (.. a a b b c c ..) is, for the two copies of
    b, `w0 a + (w1+w2) b` and `(w0+w1) b + w2 c`, that is `k b - w0 (b - a)` and `k b + w2 (c - b)`
    with k = w0 + w1 + w2: three products for two rows. In two dimensions, 9 products give the 4
    output pixels for which a plain convolution needs 36 (and four 2x2 convolutions 16).
    On a GPU, memory is the bottleneck, not products: there the 16 run in one convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x_BhwD: Tensor) -> Tensor:
        """Double the resolution: (B, h, w, D) to (B, 2h, 2w, D)."""
        return self.upsample(x_BhwD, self.kernels())

    def kernels(self) -> tuple[Tensor, ...]:
        """Return the kernels for `upsample`, which are the same for every band of a map."""
        kernel = torch.tanh(self.gate) * self.conv.weight
        return (_phase_kernels(kernel),) if device.is_gpu(kernel) else _sub_pixel_kernels(kernel)

    def upsample(self, x_BhwD: Tensor, kernels: tuple[Tensor, ...]) -> Tensor:
        """Double the resolution with given kernels: (B, h, w, D) to (B, 2h, 2w, D)."""
        B, h, w, D = x_BhwD.shape
        assert self.conv.bias is not None
        gate = torch.tanh(self.gate)
        y_BhwD = F.gelu(self.norm(x_BhwD))
        if len(kernels) == 1:
            y_BDhw = F.pad(y_BhwD.permute(0, 3, 1, 2), (1, 1, 1, 1))
            z = F.conv2d(y_BDhw, kernels[0], (gate * self.conv.bias).repeat(4))
            z = z.permute(0, 2, 3, 1).contiguous()  # (B, h + 1, w + 1, 4·D)
            phases: Tensor = _Interleave.apply(z)
            return (phases + x_BhwD[:, :, None, :, None]).view(B, 2 * h, 2 * w, D)
        same, rows, columns, both = kernels
        # Differences of neighbors, including the zero padding: h + 1 of them along h rows.
        dr_BrwD = F.pad(y_BhwD, (0, 0, 0, 0, 0, 1)) - F.pad(y_BhwD, (0, 0, 0, 0, 1, 0))
        dc_BhcD = F.pad(y_BhwD, (0, 0, 0, 1)) - F.pad(y_BhwD, (0, 0, 1, 0))
        drc_BrcD = F.pad(dr_BrwD, (0, 0, 0, 1)) - F.pad(dr_BrwD, (0, 0, 1, 0))

        base_BhwD = x_BhwD + F.linear(y_BhwD, same, gate * self.conv.bias)
        r_BrwkD = F.linear(dr_BrwD, rows).view(B, h + 1, w, 2, D)
        c_BhckD = F.linear(dc_BhcD, columns).view(B, h, w + 1, 2, D)
        rc_BrckD = F.linear(drc_BrcD, both).view(B, h + 1, w + 1, 4, D)

        # The even row of a pair needs the difference above it, the odd row the one below.
        upper = base_BhwD + r_BrwkD[:, :-1, :, 0]
        lower = base_BhwD + r_BrwkD[:, 1:, :, 1]
        left, right = c_BhckD[:, :, :-1, 0], c_BhckD[:, :, 1:, 1]
        even_BhwkD = torch.stack(
            [upper + left + rc_BrckD[:, :-1, :-1, 0], upper + right + rc_BrckD[:, :-1, 1:, 1]], 3
        )
        odd_BhwkD = torch.stack(
            [lower + left + rc_BrckD[:, 1:, :-1, 2], lower + right + rc_BrckD[:, 1:, 1:, 3]], 3
        )
        return torch.stack([even_BhwkD, odd_BhwkD], dim=2).view(B, 2 * h, 2 * w, D)


class _Interleave(torch.autograd.Function):
    """(B, h + 1, w + 1, 4·D) to (B, h, 2, w, 2, D): r, c of i, j is phase (r, c) of i + r, j + c.

    This is one view and one copy; autograd would sum the gradient of such a view with atomics.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.shape = z.shape
        return _Interleave._phases(z).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        z = grads[0].new_zeros(ctx.shape)
        _Interleave._phases(z).copy_(grads[0])
        return z

    @staticmethod
    def _phases(z: Tensor) -> Tensor:
        B, rows, columns, D = z.shape[0], z.shape[1], z.shape[2], z.shape[3] // 4
        row = columns * 4 * D
        strides = (rows * row, row, row + 2 * D, 4 * D, 5 * D, 1)
        return z.as_strided((B, rows - 1, 2, columns - 1, 2, D), strides)


def _phase_kernels(kernel_OI33: Tensor) -> Tensor:
    """Turn a 3x3 kernel into (4·O, I, 2, 2), ordered by output row, then column, even first."""
    k = kernel_OI33
    rows = (torch.stack([k[:, :, 0], k[:, :, 1] + k[:, :, 2]], 2),
            torch.stack([k[:, :, 0] + k[:, :, 1], k[:, :, 2]], 2))  # fmt: skip
    both = [
        torch.stack(part, 3)
        for r in rows
        for part in ((r[..., 0], r[..., 1] + r[..., 2]), (r[..., 0] + r[..., 1], r[..., 2]))
    ]
    return torch.cat(both)


def _sub_pixel_kernels(kernel_OI33: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn a 3x3 kernel into matrices for the map and its row, column and mixed differences.

    Return (O, I), (2·O, I), (2·O, I), (4·O, I). Row differences have even, then odd output rows;
    column differences likewise; mixed ones (even, even), (even, odd), (odd, even), (odd, odd).
    """
    k = kernel_OI33
    whole, even, odd = k.sum(2), -k[:, :, 0], k[:, :, 2]  # by rows, (O, I, 3)
    # Joined one by one, so that nothing larger than the kernel itself is kept beside it.
    return (
        whole.sum(-1),
        torch.cat([even.sum(-1), odd.sum(-1)]),
        torch.cat([-whole[..., 0], whole[..., 2]]),
        torch.cat([-even[..., 0], even[..., 2], -odd[..., 0], odd[..., 2]]),
    )


class ImageSegmenter(nn.Module):
    """Trainable last block, gated decoder and projection, initialized from the CLIP's weights."""

    def __init__(self, clip: FrozenClip) -> None:
        super().__init__()
        self.block = copy.deepcopy(clip.last_block).requires_grad_(True)
        self.stages = nn.ModuleList(GatedUpsampling(clip.width) for _ in range(STAGES))
        self.ln_post = copy.deepcopy(clip.clip.visual.ln_post).requires_grad_(True)
        self.proj = nn.Parameter(clip.clip.visual.proj.detach().clone())
        self.mask_scale = nn.Parameter(torch.tensor(10.0))
        self.mask_bias = nn.Parameter(torch.tensor(-2.5))

    def forward(self, tokens_BPD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the pixel embedding x^v (B, C, H, W), unit over C, from the frozen trunk's output.

        `grid` is (h, w).
        """
        x_BhwD = self._patches(tokens_BPD, grid)
        for stage in self.stages:
            x_BhwD = stage(x_BhwD)
        return self._embed(x_BhwD)

    @torch.no_grad()
    def bands(self, tokens_BPD: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """Yield x^v in bands from top to bottom, (B, C, some rows, W): no full map is needed.

        The last stage needs most of the memory and reads one row around a pixel: on a band with
        one more row at each inner edge, it gives the same numbers.
        """
        x_BhwD = self._patches(tokens_BPD, grid)
        for stage in self.stages[:-1]:
            x_BhwD = stage(x_BhwD)
        last = self.stages[-1]
        assert isinstance(last, GatedUpsampling)
        kernels = last.kernels()
        rows = x_BhwD.shape[1]
        for top in range(0, rows, BAND_ROWS):
            bottom = min(top + BAND_ROWS, rows)
            first = max(top - 1, 0)
            doubled = last.upsample(x_BhwD[:, first : bottom + 1], kernels)
            yield self._embed(doubled[:, 2 * (top - first) : 2 * (bottom - first)])

    def _patches(self, tokens_BPD: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run the trainable last block: (B, h, w, D)."""
        # The dense block treats every token separately, so the class token need not enter it.
        x_BpD = run_dense_block(self.block, tokens_BPD[:, 1:])
        return x_BpD.reshape(len(x_BpD), *grid, -1)

    def _embed(self, x_BHWD: Tensor) -> Tensor:
        """Project into the joint space: (B, C, H, W), unit over C."""
        pixels_BHWC = F.normalize((self.ln_post(x_BHWD) @ self.proj).float(), dim=-1)
        return pixels_BHWC.permute(0, 3, 1, 2)

    def mask_logits(self, pixels_BCHW: Tensor, texts_NC: Tensor) -> Tensor:
        """Return w <x^v, n> + b for every image and text: (B, N, H, W) (METHOD §2.5)."""
        if device.is_gpu(pixels_BCHW):  # scale and bias inside the product: one kernel, one map
            B, _, H, W = pixels_BCHW.shape
            scaled_BNC = (self.mask_scale * texts_NC).expand(B, -1, -1)
            bias = self.mask_bias.to(texts_NC.dtype).expand(B, len(texts_NC), H * W)
            logits_BNP = torch.baddbmm(bias, scaled_BNC, pixels_BCHW.flatten(2))
            return logits_BNP.view(B, -1, H, W)
        similarity = torch.einsum("bchw,nc->bnhw", pixels_BCHW, texts_NC)
        return self.mask_scale * similarity + self.mask_bias
