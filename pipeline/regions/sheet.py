"""features/NNNNN.arrow + regions/NNNNN.parquet -> one contact sheet. Light.

Each picture is shown beside its regions in their mean colors; white lines are region boundaries.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from codeseg.pipeline.engine.stage import FEATURES
from codeseg.pipeline.engine.storage import Storage
from codeseg.pipeline.regions.settings import read_feature_settings
from codeseg.pipeline.stream.feature_table import Block
from codeseg.pipeline.stream.region_table import RegionMap, RegionTable

CELL = 160  # pixels of a picture's side on the sheet
GAP = 8
PAIRS_A_ROW = 4

Pixels = NDArray[np.uint8]


def first_pictures(root: Storage, count: int) -> list[tuple[Pixels, RegionMap]]:
    """Return the first view of the first pictures of a root, each with its regions.

    Raises:
        ValueError, FileNotFoundError: there are none.
    """
    table, settings = RegionTable(root), read_feature_settings(root)
    pictures: list[tuple[Pixels, RegionMap]] = []
    for shard in table.shards:
        reader = pa.ipc.open_file(root.open_input(FEATURES.path(shard)))
        for number in range(reader.num_record_batches):
            block = Block(reader.get_batch(number), settings)
            for row in range(block.rows):
                if len(pictures) == count:
                    return pictures
                regions = table.regions(block.key(row), 0)
                pictures.append((block.pixels_KVHWC[block.picture_R[row], 0], regions))
    if not pictures:
        raise ValueError(f"{root.uri} holds no pictures to show: its features are empty")
    return pictures


def contact_sheet(pictures: Sequence[tuple[Pixels, RegionMap]]) -> Image.Image:
    """Draw pictures (H, W, 3) RGB with the region maps (h, w) that cover them."""
    columns = min(PAIRS_A_ROW, len(pictures))
    rows = -(-len(pictures) // PAIRS_A_ROW)
    step = (2 * CELL + 2 * GAP, CELL + GAP)
    sheet = Image.new("RGB", (columns * step[0] + GAP, rows * step[1] + GAP), "white")
    for i, (pixels, regions) in enumerate(pictures):
        left, top = GAP + i % PAIRS_A_ROW * step[0], GAP + i // PAIRS_A_ROW * step[1]
        sheet.paste(_outlined(pixels, regions), (left, top))
        sheet.paste(_outlined(mean_colors(pixels, regions), regions), (left + CELL, top))
    return sheet


def mean_colors(pixels: Pixels, regions: RegionMap) -> Pixels:
    """Return the picture with every region in its mean color."""
    size = (pixels.shape[1], pixels.shape[0])
    large = np.asarray(Image.fromarray(regions).resize(size, Image.Resampling.NEAREST))
    sizes = np.bincount(large.ravel())
    colors = [
        np.bincount(large.ravel(), weights=pixels[..., c].ravel()) / sizes.clip(min=1)
        for c in range(3)
    ]
    filled: Pixels = np.stack(colors, axis=-1).round().astype(np.uint8)[large]
    return filled


def _outlined(pixels: Pixels, regions: RegionMap) -> Image.Image:
    """Return the picture at the sheet's size, with lines between regions."""
    cell = Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(cell)
    h, w = regions.shape
    ys, xs = np.arange(h + 1) * CELL // h, np.arange(w + 1) * CELL // w
    for i, j in np.argwhere(regions[:, 1:] != regions[:, :-1]).tolist():
        draw.line([(xs[j + 1], ys[i]), (xs[j + 1], ys[i + 1])], fill="white", width=2)
    for i, j in np.argwhere(regions[1:] != regions[:-1]).tolist():
        draw.line([(xs[j], ys[i + 1]), (xs[j + 1], ys[i + 1])], fill="white", width=2)
    return cell
