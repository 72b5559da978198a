"""JPEG bytes -> augmented pixels of the CLIP's size: the training images of METHOD §7. Light.

Random resized crop and horizontal flip as in torchvision with PIL (bilinear with antialiasing), but
the random numbers are hashes of their purpose, so that the features stage and the trainer make the
same view from the same numbers.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codeseg.pipeline.stream.order import Hash, hash_numbers, uniform

RATIO = (3 / 4, 4 / 3)  # width / height of a crop
TRIES = 10
DRAWS = 2 * TRIES + 3  # area and ratio per try, left, top, flip

Pixels = NDArray[np.uint8]


def decode(jpg: bytes) -> Image.Image:
    """Return the image in RGB.

    Raises:
        OSError: the bytes are not a whole image.
    """
    try:
        return Image.open(io.BytesIO(jpg)).convert("RGB")
    except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"not an image: {error}") from None


def view(
    image: Image.Image, bits: Hash, *, size: int, crop_scale: tuple[float, float], flip: bool
) -> Pixels:
    """Return an augmented view of an RGB image, (size, size, 3) uint8 RGB.

    `bits` (1,) is a random number that identifies the view; `flip` mirrors half the views.
    `crop_scale` is the smallest and largest share of the image's area; (1, 1) is the largest
    centered crop with a ratio within `RATIO`, without randomness.
    """
    draws = uniform(hash_numbers(bits, np.arange(DRAWS)))
    box = _crop(image.width, image.height, crop_scale, draws)
    pixels = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if flip and draws[-1] < 0.5 else pixels


def _crop(
    width: int, height: int, scale: tuple[float, float], draws: NDArray[np.float64]
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of torchvision's RandomResizedCrop."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area_draw, ratio_draw in draws[: 2 * TRIES].reshape(TRIES, 2):
        if scale == (1, 1):
            break
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = int((width - w + 1) * draws[-3])
            top = int((height - h + 1) * draws[-2])
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
