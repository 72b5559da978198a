"""One convention for pictures: upright by EXIF, over white, whoever reads them."""

import io
import struct
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from codeseg.model.pictures.pixels import is_plain, rgb_pixels
from codeseg.pipeline.download.pairs import DownloadSettings, Pictures

COLOURS = np.array([[(220, 30, 30), (30, 180, 30)], [(30, 30, 220), (240, 240, 60)]], np.uint8)
UPRIGHT = np.repeat(np.repeat(COLOURS, 40, 0), 60, 1)  # 80 high, 120 wide, four corners
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="%d"/></x:xmpmeta>'
STORED = {  # orientation -> how a camera that holds it so stores an upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def written(kind, orientation, by):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    tag = {"exif": exif} if by == "EXIF" else {"xmp": XMP % orientation}
    content = io.BytesIO()
    image.save(content, kind, **tag, **({"quality": 95} if kind != "PNG" else {}))
    return content.getvalue()


@pytest.fixture(scope="module")
def machinery():
    return Pictures(DownloadSettings())


def as_converted(machinery, content):
    row = machinery.convert(content)
    assert (row["original_width"], row["original_height"]) == (120, 80)
    return rgb_pixels(row["jpg"])


READERS = {
    "segment and the page": lambda _, content: rgb_pixels(content),
    "tars": as_converted,
    "download": lambda machinery, content: rgb_pixels(machinery.resize(content)[0]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("kind", "by"),
    [("JPEG", "EXIF"), ("PNG", "EXIF"), ("WEBP", "EXIF"), ("JPEG", "XMP"), ("WEBP", "XMP")],
)
def test_every_reader_turns_every_picture_upright(machinery, kind, by, reader):
    for orientation in STORED:
        pixels = READERS[reader](machinery, written(kind, orientation, by))
        assert pixels.shape == UPRIGHT.shape, orientation
        corners = pixels[[[20], [60]], [[30, 90]]].astype(int)
        assert np.abs(corners - COLOURS).max() < 40, orientation


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_what_is_transparent_is_white_for_every_reader(machinery, kind):
    image = Image.new("RGBA", (120, 80), (0, 0, 0, 0))
    image.paste((220, 30, 30, 255), (60, 0, 120, 80))
    content = io.BytesIO()
    image.save(content, kind)
    for reader in READERS.values():
        pixels = reader(machinery, content.getvalue()).astype(int)
        assert pixels[40, 20].min() > 245 and np.abs(pixels[40, 100] - (220, 30, 30)).max() < 20


def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def profiled(size):
    return PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(size))) + PNG[33:]


def bmp(compression, pixels):
    head = struct.pack("<IiiHHIIiiII", 40, 120, 80, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(1024) + pixels


EXIF, PNG, WEBP = written("JPEG", 6, "EXIF"), written("PNG", 1, "XMP"), written("WEBP", 1, "EXIF")
ODD = {  # what OpenCV and Pillow disagree about -> whether it is a picture
    "no EXIF in its block": (EXIF.replace(b"Exif\0\0MM", b"Exif\0\0XX"), True),
    "a wrong checksum of EXIF": (written("PNG", 6, "EXIF").replace(b"MM\0*", b"XX\0*"), False),
    "no end": (PNG[:-12], True),
    "half": (PNG[: len(PNG) // 2], False),
    "a wrong checksum at the end": (PNG[:-16] + bytes(4) + PNG[-12:], True),
    "a large profile": (profiled(2 << 20), False),
    "a profile": (profiled(2000), True),
    "runs": (bmp(1, (b"\x78\0\0\0") * 80 + b"\0\1"), True),
    "no runs": (bmp(1, b"\0\1"), False),
    "JPEG cut off": (EXIF[:-50], False),
    "WebP cut off": (WEBP[:-5], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_every_reader_takes_or_refuses_the_same_files(machinery, kind):
    content, taken = ODD[kind]
    assert (machinery.convert(content)["status"] == "success") == taken
    assert (machinery.resize(content)[-1] is None) == taken
    with nullcontext() if taken else pytest.raises(ValueError, match=r"^the picture: "):
        rgb_pixels(content)


def test_cmyk_has_the_same_colours_for_every_reader(machinery):
    inks = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    cmyk, rgb = io.BytesIO(), io.BytesIO()
    picture = Image.fromarray(inks.repeat(16, 0).repeat(20, 1), "CMYK")
    picture.save(cmyk, "JPEG", quality=95)
    assert not is_plain(cmyk.getvalue())
    Image.fromarray(rgb_pixels(cmyk.getvalue())).save(rgb, "PNG")
    for make, jpg in ((machinery.convert, "jpg"), (machinery.resize, 0)):
        assert make(cmyk.getvalue())[jpg] == make(rgb.getvalue())[jpg]
