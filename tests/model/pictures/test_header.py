"""What a header claims is what Pillow and OpenCV find, and hostile bytes cost nothing."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codeseg.model.pictures.header import (
    MAX_COMPRESSED_CHUNKS,
    MAX_EXIF_BYTES,
    MAX_SCANS,
    MAX_SEGMENTS,
    HeaderError,
    ImageHeader,
    read_header,
)

EXIF = Image.Exif()
EXIF[0x0112] = 6
WRITTEN = {
    "JPEG": (
        ("RGB", "L", "CMYK", "YCbCr", "1"),
        [{}, {"progressive": True}, {"exif": EXIF, "icc_profile": bytes(200_000)},
         {"restart_marker_blocks": 1}, {"comment": b"\xff\xda" * 300}],
    ),
    "PNG": (("RGB", "L", "P", "1", "LA", "RGBA", "I;16"), [{}, {"icc_profile": bytes(999)}]),
    "GIF": (("RGB", "L", "P", "1", "RGBA"), [{}, {"comment": b"a" * 700}]),
    "BMP": (("RGB", "L", "P", "1", "RGBA"), [{}]),
    "WEBP": (
        ("RGB", "RGBA", "L", "P"),
        [{}, {"lossless": True}, {"exif": EXIF, "icc_profile": bytes(999)}],
    ),
}  # fmt: skip
CASES = [
    (kind, mode, options)
    for kind, (modes, choices) in WRITTEN.items()
    for mode in modes
    for options in choices
]


def picture(mode, width, height):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[:, :, 0].astype(np.uint16) << 8)
    return Image.fromarray(noise).convert("RGB" if mode == "YCbCr" else "RGBA").convert(mode)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


JPEG = saved(picture("RGB", 32, 24), "JPEG")
PNG = saved(picture("RGB", 32, 24), "PNG")


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


@given(st.sampled_from(CASES), st.integers(1, 300), st.integers(1, 300))
def test_the_header_is_what_was_written(case, width, height):
    kind, mode, options = case
    content = saved(picture(mode, width, height), kind, **options)
    header = read_header(content)
    assert (header.format, header.width, header.height) == (kind, width, height)
    assert header.bits == (16 if mode == "I;16" else 1 if (kind, mode) == ("PNG", "1") else 8) or (
        mode == "P" and header.bits < 8
    )


@pytest.mark.parametrize(("kind", "mode", "options"), CASES)
def test_no_decoder_finds_a_size_or_a_fourth_channel_that_was_not_announced(kind, mode, options):
    content = saved(picture(mode, 40, 30), kind, **options)
    header = read_header(content)
    pixels = decoded(content)
    assert pixels.shape[:2] == (header.height, header.width) == (30, 40)
    assert header.alpha or pixels.ndim == 2 or pixels.shape[2] == 3
    assert pixels.dtype == (np.uint16 if header.bits > 8 else np.uint8)
    if kind not in ("GIF", "PNG") and mode in ("RGB", "CMYK", "L"):
        assert not header.alpha, "the limit for transparent pictures is lower"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_moving_pictures_have_the_size_of_their_canvas(kind):
    frames = [picture("RGB", 50, 40), Image.new("RGB", (50, 40), "red")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert read_header(content) == ImageHeader(kind, 50, 40, alpha=True)


def test_a_transparent_color_counts_as_alpha():
    content = saved(picture("P", 40, 30), "PNG", transparency=0)
    assert decoded(content).shape[2] == 4 and read_header(content).alpha


def test_a_bmp_may_be_top_down_or_of_the_first_kind():
    content = bytearray(saved(picture("RGB", 40, 30), "BMP"))
    struct.pack_into("<i", content, 22, -30)
    assert read_header(bytes(content)) == ImageHeader("BMP", 40, 30)
    old = b"BM" + struct.pack("<IIIIHHHH", 26, 0, 26, 12, 40, 30, 1, 24)
    assert read_header(old) == ImageHeader("BMP", 40, 30)


@given(st.sampled_from(CASES), st.data())
def test_changed_and_cut_bytes_give_our_error_or_what_the_decoder_finds(case, data):
    kind, mode, options = case
    content = bytearray(saved(picture(mode, 9, 7), kind, **options))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(
            st.integers(0, 255)
        )
    content = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        header = read_header(content)
    except HeaderError:
        return
    pixels = decoded(content) if 0 < header.width * header.height < 1_000_000 else None
    if pixels is not None:
        assert pixels.shape[:2] == (header.height, header.width)
        assert header.alpha or pixels.ndim == 2 or pixels.shape[2] == 3


@given(st.sampled_from([b"\xff\xd8\xff", b"BM", b"GIF89a", PNG[:8], b"RIFF\0\0\0\0WEBPVP8"]),
       st.binary(max_size=200))  # fmt: skip
def test_any_bytes_after_a_magic_give_a_header_or_our_error(magic, rest):
    try:
        read_header(magic + rest)
    except HeaderError as error:
        assert str(error)


@pytest.mark.parametrize("content", [
    b"", b"<html>", b"%PDF-1.4", b"\xff\xd8\xff", b"GIF89a\0", JPEG[:2] + JPEG[-2:],
    saved(picture("RGB", 9, 9), "TIFF"), PNG[:8] + PNG[33:], b"GIF89a" + bytes(9),
    b"GIF89a\x09\0\x09\0\0\0\0;",
])  # fmt: skip
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(HeaderError) as caught:
        read_header(content)
    assert not caught.value.bomb


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def progressive_jpeg(more_scans):
    content = saved(picture("RGB", 32, 24), "JPEG", progressive=True)
    scan = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + scan * more_scans + content[-2:]


def claiming(jpeg, width, height):
    """The JPEG with another size in its frame: libjpeg paints the missing pixels gray."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def gif_comment(blocks):
    content = saved(picture("P", 32, 24), "GIF")
    after_colors = 13 + 3 * 256
    comment = b"!\xfe" + (b"\xff" + b"," * 255) * blocks + b"\0"
    return content[:after_colors] + comment + content[after_colors:]


def zeros(count):
    """A lot of nothing, packed."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    packed = [packer.compress(block[: min(1 << 20, count - at)]) for at in range(0, count, 1 << 20)]
    return b"".join(packed) + packer.flush()


def png_of(data, pieces=1):
    """A PNG of 32 by 24 pixels whose data go on and on."""
    size = -(-len(data) // pieces)
    parts = [chunk(b"IDAT", data[at : at + size]) for at in range(0, len(data), size)]
    return PNG[:33] + b"".join(parts) + chunk(b"IEND", b"")


TEXT = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100)))
EXIF_SEGMENT = segment(0xE1, b"Exif\0\0" + bytes(60_000))


@pytest.mark.parametrize(("fine", "bomb"), [
    (progressive_jpeg(20), progressive_jpeg(MAX_SCANS)),
    (JPEG[:2] + EXIF_SEGMENT + JPEG[2:],
     JPEG[:2] + EXIF_SEGMENT * (MAX_EXIF_BYTES // 60_000 + 1) + JPEG[2:]),
    (JPEG[:2] + segment(0xFE, b"") * 99 + JPEG[2:],
     JPEG[:2] + segment(0xFE, b"") * MAX_SEGMENTS + JPEG[2:]),
    (PNG[:33] + TEXT * MAX_COMPRESSED_CHUNKS + PNG[33:],
     PNG[:33] + TEXT * (MAX_COMPRESSED_CHUNKS + 1) + PNG[33:]),
    (PNG[:33] + chunk(b"abCd", b"zTXt") * 99 + PNG[33:],
     PNG[:33] + chunk(b"abCd", b"zTXt") * MAX_SEGMENTS + PNG[33:]),
    (gif_comment(2000), gif_comment(MAX_SEGMENTS + 1)),
    (JPEG, claiming(JPEG, 8000, 8000)),
    (png_of(zeros(10 << 20)), png_of(zeros(1100 << 20))),
    (png_of(zeros(100_000)), png_of(zeros(1100 << 20), pieces=2000)),
], ids=["scans", "exif", "segments", "texts", "chunks", "comments", "claim", "data",
        "pieces"])  # fmt: skip
def test_what_only_costs_time_or_memory_is_a_bomb(fine, bomb):
    assert (read_header(fine).width, read_header(fine).height) == (32, 24)
    with pytest.raises(HeaderError) as caught:
        read_header(bomb)
    assert caught.value.bomb


def test_padding_after_a_png_is_not_looked_at():
    assert read_header(PNG + bytes(12 * MAX_SEGMENTS)) == read_header(PNG)


def test_a_jpeg_after_a_jpeg_is_not_looked_at():
    """Phones hang a second picture, or a film, after the end of the first."""
    assert read_header(JPEG + progressive_jpeg(MAX_SCANS)) == read_header(JPEG)
