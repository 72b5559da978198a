"""One convention for pictures: upright by EXIF, over white, whoever reads them."""

import io

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


def test_an_exif_block_that_is_none_is_undecodable_or_ignored(machinery):
    content = written("JPEG", 6, "EXIF")
    for damaged in (content.replace(b"Exif\0\0MM", b"Exif\0\0XX"), content[:40] + content[60:]):
        assert machinery.convert(damaged)["error"] in (None, "undecodable", "not_an_image")


def test_cmyk_has_the_same_colours_for_every_reader(machinery):
    inks = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    cmyk, rgb = io.BytesIO(), io.BytesIO()
    picture = Image.fromarray(inks.repeat(16, 0).repeat(20, 1), "CMYK")
    picture.save(cmyk, "JPEG", quality=95)
    assert not is_plain(cmyk.getvalue())
    Image.fromarray(rgb_pixels(cmyk.getvalue())).save(rgb, "PNG")
    for make, jpg in ((machinery.convert, "jpg"), (machinery.resize, 0)):
        assert make(cmyk.getvalue())[jpg] == make(rgb.getvalue())[jpg]
