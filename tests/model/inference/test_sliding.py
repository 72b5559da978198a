import pytest
import torch
import torch.nn.functional as F

from codeseg.model.inference import sliding
from codeseg.model.inference.sliding import best_class, layout, stitched, working_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (448, 597)), ((1024, 2048), (448, 896)), ((100, 1000), (205, 2048)),
     ((1, 1), (448, 448)), ((1, 5000), (1, 2048))],
)  # fmt: skip
def test_working_size(size, expected):
    assert working_size(*size, 448, 2048) == expected


@pytest.mark.parametrize("size", [(448, 448), (448, 597), (448, 2048), (60, 700), (449, 448)])
def test_windows_cover_every_pixel_and_stay_inside(size):
    windows = layout(*size, 448, 224)
    seen = torch.zeros(size)
    for y, x in windows.corners:
        assert y + windows.window_height <= size[0] and x + windows.window_width <= size[1]
        seen[y : y + windows.window_height, x : x + windows.window_width] += 1
    assert seen.min() >= 1
    assert len(set(windows.corners)) == len(windows.corners)


def test_window_positions_are_the_references():
    assert layout(448, 597, 448, 224).corners == ((0, 0), (0, 149))
    assert layout(448, 896, 448, 224).corners == ((0, 0), (0, 224), (0, 448))


def plain(masks, windows, padded, offset, size):
    """All classes at once, windows pasted on full-size canvases and divided: the reference way."""
    total = torch.zeros(masks.shape[1], windows.height, windows.width)
    count = torch.zeros(windows.height, windows.width)
    full = F.interpolate(masks, padded, mode="bilinear", align_corners=False)
    for mask, (y, x) in zip(full, windows.corners, strict=True):
        cut = mask[:, offset[0] : offset[0] + windows.window_height]
        cut = cut[:, :, offset[1] : offset[1] + windows.window_width]
        below, right = windows.height - y - cut.shape[1], windows.width - x - cut.shape[2]
        total += F.pad(cut, (x, right, y, below))
        count += F.pad(torch.ones_like(cut[0]), (x, right, y, below))
    return F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("background", [None, 0.6])
def test_chunks_of_classes_change_no_number(monkeypatch, background):
    windows = layout(30, 50, 30, 12)
    masks = torch.rand(len(windows.corners), 7, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = (masks, windows, (32, 32), (1, 1), (41, 63))
    expected = plain(*arguments)
    labels = []
    for floats in (1, 3 * 41 * 63, 1 << 30):
        monkeypatch.setattr(sliding, "CHUNK_FLOATS", floats)
        maps = list(stitched(*arguments))
        assert torch.allclose(torch.cat([part for _, part in maps]), expected, atol=1e-6)
        labels.append(best_class(iter(maps), (41, 63), background))
    assert torch.equal(labels[0], labels[1]) and torch.equal(labels[0], labels[2])
    scores = expected
    if background is not None:
        scores = torch.cat([torch.full((1, 41, 63), background), expected])
    assert torch.equal(labels[0].long(), scores.argmax(0))


def test_of_equal_classes_the_first_wins_and_background_wins_a_draw():
    maps = torch.full((3, 1, 1), 0.5)
    assert best_class(iter([(slice(0, 3), maps)]), (1, 1), None).item() == 0
    assert best_class(iter([(slice(0, 3), maps)]), (1, 1), 0.5).item() == 0
    assert best_class(iter([(slice(0, 3), maps)]), (1, 1), 0.4).item() == 1
