"""Augmented views: torchvision's random resized crop, from numbers that are a hash."""

import io

import numpy as np
import pytest
from PIL import Image

from codeseg.pipeline.stream import views
from codeseg.pipeline.stream.order import hash_numbers


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((240, 192), Image.Resampling.BICUBIC)


def test_a_view_is_a_function_of_its_number_alone(image):
    options = {"size": 64, "crop_scale": (0.5, 1.0), "flip": True}
    one = views.view(image, hash_numbers(3, 1), **options)
    assert (one == views.view(image, hash_numbers(3, 1), **options)).all()
    assert (one != views.view(image, hash_numbers(3, 2), **options)).any()
    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8


def test_without_augmentation_it_is_the_resized_image(image):
    off = {"size": 64, "crop_scale": (1.0, 1.0), "flip": False}
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
    for number in range(20):
        assert (views.view(image, hash_numbers(number), **off) == expected).all()


def test_wide_images_are_cut_to_the_widest_ratio():
    wide = Image.new("RGB", (400, 30))
    wide.paste((255, 0, 0), (180, 0, 220, 30))  # 40 = 30 · 4/3 wide, centered
    off = views.view(wide, hash_numbers(0), size=16, crop_scale=(1.0, 1.0), flip=False)
    assert (off[..., 0] == 255).all()


def test_half_the_views_are_flipped(image):
    plain = [
        views.view(image, hash_numbers(n), size=8, crop_scale=(0.9, 1.0), flip=False)
        for n in range(400)
    ]
    maybe = [
        views.view(image, hash_numbers(n), size=8, crop_scale=(0.9, 1.0), flip=True)
        for n in range(400)
    ]
    flipped = [(a[:, ::-1] == b).all() for a, b in zip(plain, maybe, strict=True)]
    same = [(a == b).all() for a, b in zip(plain, maybe, strict=True)]
    assert all(f or s for f, s in zip(flipped, same, strict=True))
    assert 160 < sum(flipped) < 240


def test_crops_keep_torchvisions_bounds():
    from torchvision.transforms import RandomResizedCrop

    draws = np.random.default_rng(0).random((2000, views.DRAWS))
    boxes = np.array([views._crop(256, 320, (0.9, 1.0), row) for row in draws])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 256).all() and (bottom <= 320).all()
    theirs = [
        RandomResizedCrop.get_params(Image.new("L", (256, 320)), (0.9, 1.0), views.RATIO)
        for _ in range(2000)
    ]
    top_t, left_t, height_t, width_t = np.array(theirs).T
    for ours, reference in [
        (right - left, width_t),
        (bottom - top, height_t),
        (left, left_t),
        (top, top_t),
    ]:
        error = 5 * np.hypot(ours.std(), reference.std()) / np.sqrt(2000)
        assert abs(ours.mean() - reference.mean()) <= error


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_broken_images_are_os_errors(image, damage):
    file = io.BytesIO()
    image.save(file, "JPEG")
    data = {"empty": b"", "text": b"<html>no</html>", "cut": file.getvalue()[:2000]}[damage]
    with pytest.raises(OSError):
        views.decode(data)
