"""A picture in any form that a user may give -> RGB pixels, uint8 H×W×3. The only such place.

Pictures are turned upright by their EXIF tag; gray, palette, CMYK and 16-bit pictures become 8-bit
RGB; transparency becomes white. Damaged, empty and huge pictures are refused with a one-line error.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from codeseg.model.pictures.header import ENDINGS, MAX_EXIF_BYTES, read_header

MAX_PIXELS = 100_000_000  # 8000×6000 is 48 million; a larger picture is probably an attack
EXIF_KEYS = ("exif", "Raw profile type exif")  # where Pillow looks for a picture's orientation
TURN = Image.Transpose
UPRIGHT = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip
"""By EXIF orientation; ImageOps.exif_transpose fails where another tag is damaged."""

Pixels = npt.NDArray[np.uint8]
if TYPE_CHECKING:
    from torch import Tensor
Picture = Union[str, Path, bytes, Image.Image, npt.NDArray[Any], "Tensor"]

SENT_FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
"""Formats accepted from strangers; some of Pillow's others start another program (EPS) or need a
thousand times their size to open (TIFF)."""


def rgb_pixels(
    picture: Picture,
    max_pixels: int | None = None,
    turned: Callable[[tuple[int, int], int], bool] = lambda size, orientation: True,
) -> Pixels:
    """Read a picture.

    Args:
        picture: a path; a file's bytes (of SENT_FORMATS); a PIL image; an array H×W, H×W×1,
            H×W×3 or H×W×4 (RGB order) of uint8, uint16 or float in 0..1; or a tensor H×W or
            C×H×W of the same.
        max_pixels: a larger file or image is refused before it is decoded; None: MAX_PIXELS.
        turned: called with the stored (width, height) and the EXIF orientation of a file or image
            that has one; returns whether to turn it upright.

    Returns:
        uint8 H×W×3, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a picture, or is damaged, empty or too large.
    """
    if hasattr(picture, "detach"):  # a tensor; torch need not be loaded to check
        picture = _from_tensor(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if max_pixels is None:
        max_pixels = MAX_PIXELS
    if isinstance(picture, Image.Image):
        return _from_image(picture, "the image", max_pixels, turned)
    sent = isinstance(picture, bytes)
    name = "the picture" if sent else str(picture)
    with _named(name, max_pixels):
        if isinstance(picture, bytes):
            read_header(picture)
        image = Image.open(
            io.BytesIO(picture) if isinstance(picture, bytes) else Path(picture).expanduser(),
            formats=SENT_FORMATS if sent else None,
        )
    with image:
        if not sent and image.format in SENT_FORMATS:
            with _named(name, max_pixels):
                read_header(Path(str(image.filename)).read_bytes())
        return _from_image(image, name, max_pixels, turned)


@contextmanager
def _named(name: str, max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow raises into one line about the picture."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: {_over_limit(max_pixels)}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: cannot be read as an image (unknown, or damaged)") from None
    except Exception as error:  # Pillow raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be read as an image ({reason})") from None


def is_plain(content: bytes) -> bool:
    """Return whether any decoder gives the same pixels of an untrusted file as rgb_pixels.

    That is false if the file asks for a rotation, may be transparent or is of a kind that decoders
    treat differently. Bytes that are not a picture raise HeaderError.
    """
    header = read_header(content)
    if header.alpha or header.odd or not header.tags:
        return not (header.alpha or header.odd)
    with Image.open(io.BytesIO(content), formats=SENT_FORMATS) as image:
        # a PNG may have its EXIF after the pixels
        return image.format != "PNG" and _orientation(image) not in UPRIGHT


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF, which says nothing about the pixels
        return None


def _over_limit(max_pixels: int) -> str:
    return f"more than {max_pixels // 1_000_000} million pixels; resize it first"


def _from_image(
    image: Image.Image, name: str, max_pixels: int, turned: Callable[[tuple[int, int], int], bool]
) -> Pixels:
    if image.width * image.height > max_pixels:
        raise ValueError(f"{name}: {image.width}×{image.height} is {_over_limit(max_pixels)}")
    if image.width * image.height == 0:
        raise ValueError(f"{name}: the image is empty")
    with _named(name, max_pixels):
        image.load()  # a PNG may have its EXIF after the pixels
    if any(len(image.info.get(key, b"")) > MAX_EXIF_BYTES for key in EXIF_KEYS):
        raise ValueError(f"{name}: over {MAX_EXIF_BYTES >> 10} KB of EXIF; save it without")
    orientation = _orientation(image)
    follows = orientation in UPRIGHT and turned(image.size, orientation)
    upright = image.transpose(UPRIGHT[orientation]) if follows else image
    if upright.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        return _from_array(_sixteen_bits(np.asarray(upright), name))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        over = upright.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, over)
    pixels: Pixels = np.asarray(upright.convert("RGB"))
    return pixels


def _sixteen_bits(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Convert PIL's 32-bit modes, which hold 16-bit files; refuse values beyond 16 bits."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: pixel values outside 0..65535; convert it to 8 or 16 bits first")
    return values.astype(np.uint16)


def _from_tensor(tensor: Any) -> npt.NDArray[Any]:
    if tensor.ndim == 3:
        tensor = tensor.movedim(0, -1)
    tensor = tensor.detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        shape = "×".join(map(str, array.shape))
        raise ValueError(f"an image array must be H×W, H×W×1, H×W×3 or H×W×4, not {shape}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ValueError(f"the image array has {_over_limit(MAX_PIXELS)}")
    array = _eight_bits(array)
    if array.shape[2] == 4:
        alpha = array[:, :, 3:].astype(np.float32) / 255
        array = np.rint(array[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels: Pixels = np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
    return pixels


def _eight_bits(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        eight: Pixels = (array >> 8).astype(np.uint8)
    elif array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        eight = np.rint(array * 255).astype(np.uint8)
    else:
        raise ValueError(
            f"an image array must be uint8, uint16 or float in 0..1, not {array.dtype} "
            f"in {array.min()}..{array.max()}"
        )
    return eight
