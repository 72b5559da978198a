import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from codeseg.model.pictures import pixels
from codeseg.model.pictures.pixels import rgb_pixels


@pytest.fixture
def picture():
    """8×6, every pixel different."""
    return np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)


def test_path_image_and_array_are_the_same(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    file = tmp_path / "a.png"
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    kinds = (file, str(file), file.read_bytes(), Image.fromarray(picture), picture)
    for given in (*kinds, tensor, tensor / 255, (tensor / 255).bfloat16().requires_grad_()):
        assert np.abs(rgb_pixels(given).astype(int) - picture).max() <= (
            1 if getattr(given, "dtype", None) == torch.bfloat16 else 0
        )
    assert np.array_equal(rgb_pixels(tensor[0]), picture[:, :, :1].repeat(3, 2))


def test_exif_rotation_is_undone(tmp_path, picture):
    image = Image.fromarray(np.kron(picture, np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = rgb_pixels(tmp_path / "a.jpg")
    assert upright.shape == (64, 48, 3)
    turned = np.rot90(np.asarray(image), -1).astype(int)
    assert np.abs(upright - turned).mean() < 5


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "PA", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode):
    gray = Image.new("L", (5, 4), 255)
    image = gray.convert("RGB").convert(mode) if mode in ("HSV", "YCbCr") else gray
    if mode == "LAB":
        image = Image.new("LAB", (5, 4), (255, 128, 128))
    elif mode not in ("HSV", "YCbCr"):
        image = gray.convert("RGBA").convert(mode) if mode == "PA" else gray.convert(mode)
    result = rgb_pixels(image)
    assert result.shape == (4, 5, 3) and result.dtype == np.uint8
    assert (result >= 250).all()


def test_cmyk_jpeg_and_16_bit_png_keep_their_brightness(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "white.jpg")
    assert (rgb_pixels(tmp_path / "white.jpg") > 250).all()
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert (rgb_pixels(tmp_path / "deep.png") == 40000 >> 8).all()


def test_transparent_pixels_are_white():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, :, 3] = 255
    for given in (image, Image.fromarray(image)):
        result = rgb_pixels(given)
        assert (result[0] == 0).all() and (result[1] == 255).all()


def test_arrays_of_other_depths(picture):
    assert np.array_equal(rgb_pixels(picture.astype(np.uint16) * 257), picture)
    assert np.array_equal(rgb_pixels(picture / 255), picture)
    assert rgb_pixels(picture[:, :, 0]).shape == (6, 8, 3)
    assert rgb_pixels(np.zeros((1, 1, 1), np.uint8)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 2), np.uint8), "not 3×4×2"),
        (np.zeros((0, 4, 3), np.uint8), "not 0×4×3"),
        (np.zeros((4, 4, 3), np.int64), "not int64"),
        (np.full((4, 4), 7.5), r"not float64 in 7\.5\.\.7\.5"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        rgb_pixels(array)


def test_damaged_missing_and_huge_files_are_refused_in_one_line(tmp_path, picture, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("torn.png", "text.png", "empty.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image") as caught:
            rgb_pixels(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such image"):
        rgb_pixels(tmp_path / "none.png")
    monkeypatch.setattr(pixels, "MAX_PIXELS", 4799)
    with pytest.raises(ValueError, match="80×60 is more than"):
        rgb_pixels(tmp_path / "whole.png")


def test_a_damaged_tag_beside_the_orientation_does_not_keep_a_picture_from_being_turned(picture):
    """An EXIF block that a camera's software spoiled: Pillow can read it but not write it again."""
    tags = struct.pack("<IHHHII", 8, 2, 0x0112, 3, 1, 6)  # orientation 6, and an exposure of text
    exif = b"Exif\0\0II*\0" + tags + struct.pack("<HHII", 0x8769, 11, 1, 0) + bytes(4)
    for kind in ("JPEG", "PNG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, kind, exif=exif)
        assert rgb_pixels(file.getvalue()).shape == (8, 6, 3), kind
        for none in (b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff"):
            file = io.BytesIO()
            Image.fromarray(picture).save(file, kind, exif=none)
            assert rgb_pixels(file.getvalue()).shape == (6, 8, 3), kind


def test_an_own_file_is_held_to_what_a_stranger_may_send(tmp_path, picture):
    text, file = PngInfo(), tmp_path / "a.png"
    text.add_text("comment", "a" * (2 << 20), zip=True)
    Image.fromarray(picture).save(file, pnginfo=text)
    for given, name in ((file, file), (file.read_bytes(), "the picture")):
        with pytest.raises(ValueError, match=rf"^{name}: cannot be read as an image \(Decomp"):
            rgb_pixels(given)
    Image.fromarray(picture).save(tmp_path / "b.jpg")
    content = (tmp_path / "b.jpg").read_bytes()
    at = content.index(b"\xff\xc0") + 5
    (tmp_path / "b.jpg").write_bytes(content[:at] + b"\x1f\x40" * 2 + content[at + 4 :])
    with pytest.raises(ValueError, match=r"b.jpg: .*\(more picture than data"):
        rgb_pixels(tmp_path / "b.jpg")


def test_sent_bytes_that_only_cost_memory_are_refused_before_they_are_opened(picture):
    """Each tag of such EXIF holds the same half of it: Pillow would make thousands of copies."""
    tags = 1000
    shared = 8 + 2 + 12 * tags + 4
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, tags)
    exif += b"".join(struct.pack("<HHII", 40_000 + i, 7, 200_000, shared) for i in range(tags))
    exif += bytes(4 + 200_000)
    for kind in ("PNG", "WEBP"):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, kind, exif=exif)
        with pytest.raises(ValueError, match="over 128 KB of EXIF"):
            rgb_pixels(file.getvalue())
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG")
    jpeg = file.getvalue()
    parts = [exif[6:][i : i + 60_000] for i in range(0, len(exif), 60_000)]
    segments = [
        b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts
    ]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "TIFF")
    for sent in (jpeg[:2] + b"".join(segments) + jpeg[2:], file.getvalue()):
        with pytest.raises(ValueError, match="the picture: cannot be read as an image"):
            rgb_pixels(sent)


def test_a_file_over_the_callers_limit_is_refused(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert rgb_pixels(content, 48).shape == (6, 8, 3)
    with pytest.raises(ValueError, match="the picture: 8×6 is more than"):
        rgb_pixels(content, 47)
