"""What a crop keeps of a scaled picture, beside what torch makes of all of it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
from cykooz_resizer import ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pierhead_server import scaling
from pierhead_server.scaling import count_pixels, find_start, scale_middle
from PIL import Image

CONVOLUTIONS = ("bilinear", "bicubic", "lanczos")
DATA, SAMPLES = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
PHOTOGRAPHS = (
    *(DATA / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")),
    *(SAMPLES / name for name in ("china.jpg", "flower.jpg")),
)


def scale_size(shape, resize):
    """As `images` does it: the shorter side to `resize`."""
    height, width = shape[:2]
    return (int(resize * height / width), resize) if width <= height else (resize, int(resize * width / height))


def cut(pixels, crop):
    top, left = (find_start(length, crop) for length in pixels.shape[:2])
    return pixels[top : top + crop, left : left + crop]


def by_torch(pixels, size, interpolation):
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    scaled = torch.nn.functional.interpolate(batch, size, mode=interpolation, antialias=True, align_corners=False)
    return scaled[0].permute(1, 2, 0).numpy()


def by_pillow(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST))


def scale_whole(pixels, size, interpolation):
    """All of a picture by the library: along the rows, then down the columns."""
    height, width = pixels.shape[:2]
    options = ResizeOptions(ResizeAlg.convolution(scaling._FILTERS[interpolation]))
    images = [
        ImageData(width, height, PixelType.U8x3, pixels.tobytes()),
        ImageData(size[1], height, PixelType.U8x3),
        ImageData(size[1], size[0], PixelType.U8x3),
    ]
    for source, target in itertools.pairwise(images):
        Resizer().resize(source, target, options)
    return np.frombuffer(images[-1].get_buffer(), dtype=np.uint8).reshape(*size, 3)


def assert_close(ours, expected, share):
    """By one level at most, in a share of the values, or in a few where a share would be none."""
    apart = np.abs(ours.astype(int) - expected)
    assert apart.max() <= 1
    assert np.count_nonzero(apart) <= max(3, share * apart.size)


def noise(height, width):
    """The worst there is: every value far from its neighbours."""
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (292, 260), (64, 57), (64, 64)])
@pytest.mark.parametrize("interpolation", CONVOLUTIONS)
@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_photographs_are_torchs(path, interpolation, resize, crop):
    pixels = np.array(Image.open(path).convert("RGB"))
    size = scale_size(pixels.shape, resize)
    ours = scale_middle(pixels, size, crop, interpolation)
    expected = cut(by_torch(pixels, size, interpolation), crop)
    if size == (64, 64):  # an eighth, where the edges' weights count
        assert_close(ours, expected, 0.012)
    else:
        assert np.array_equal(ours, expected)


shapes = st.tuples(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300), st.integers(1, 300))


@given(shape=shapes)
@settings(derandomize=True, max_examples=300, deadline=None)
@pytest.mark.parametrize("interpolation", CONVOLUTIONS)
def test_all_shapes_are_torchs(interpolation, shape):
    """Exactly where a picture grows. Where it shrinks, without the edges' weights others may be rounded finer."""
    height, width, resize, crop = shape
    resize, crop, size = max(resize, crop), min(resize, crop), scale_size(shape, max(resize, crop))
    if size[0] * size[1] > 400_000 or size == (height, width):
        return
    pixels = noise(height, width)
    ours = scale_middle(pixels, size, crop, interpolation)
    expected = cut(by_torch(pixels, size, interpolation), crop)
    assert_close(ours, expected, 0.02 if size < (height, width) else 0)
    if size > (height, width):
        assert np.array_equal(ours, expected)


@given(shape=shapes)
@settings(derandomize=True, max_examples=300, deadline=None)
def test_nearest_is_pillows(shape):
    """Also where two pixels are as near."""
    height, width, resize, crop = shape
    resize, crop, size = max(resize, crop), min(resize, crop), scale_size(shape, max(resize, crop))
    if size[0] * size[1] > 400_000:
        return
    pixels = noise(height, width)
    assert np.array_equal(scale_middle(pixels, size, crop, "nearest"), cut(by_pillow(pixels, size), crop))


@pytest.mark.parametrize("interpolation", CONVOLUTIONS)
@pytest.mark.parametrize(
    "shape", [(427, 640), (480, 640), (640, 427), (400, 500), (300, 2000), (90, 120), (41, 30), (1, 3), (3000, 2001)]
)
def test_middle_is_that_of_the_whole(shape, interpolation):
    pixels, size = noise(*shape), scale_size(shape, 256)
    whole = scale_whole(pixels, size, interpolation)
    assert np.array_equal(whole, by_torch(pixels, size, interpolation))
    assert np.array_equal(scale_middle(pixels, size, 224, interpolation), cut(whole, 224))


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_middle_without_the_edges_weights_is_rounded_finer(interpolation):
    """Scaled to a little less than a quarter, the largest weight is over a quarter at the edge, and under it within."""
    pixels, size = noise(1050, 1100), scale_size((1050, 1100), 256)
    whole, ours = cut(scale_whole(pixels, size, interpolation), 224), scale_middle(pixels, size, 224, interpolation)
    assert_close(ours, whole, 0.01)
    assert not np.array_equal(ours, whole)


@pytest.mark.parametrize("interpolation", CONVOLUTIONS)
def test_bands_change_nothing(interpolation, monkeypatch):
    pixels, size = noise(427, 640), scale_size((427, 640), 256)
    expected = scale_middle(pixels, size, 224, interpolation)
    for most in (1, 100_000):
        monkeypatch.setattr(scaling, "_BAND_BYTES", most)
        assert np.array_equal(scale_middle(pixels, size, 224, interpolation), expected)


@pytest.mark.parametrize("interpolation", ["nearest", *CONVOLUTIONS])
def test_pixels_may_lie_as_they_like(interpolation):
    pixels = noise(90, 120)
    for view in (pixels[:, ::-1], pixels[::-1], pixels.swapaxes(0, 1), pixels[..., ::-1]):
        size = scale_size(view.shape, 64)
        expected = scale_middle(np.ascontiguousarray(view), size, 57, interpolation)
        assert np.array_equal(scale_middle(view, size, 57, interpolation), expected)
        assert expected.flags.owndata


def test_larger_step_is_what_is_counted():
    assert count_pixels((4000, 4000), (256, 256), 224, "bilinear") == 224 * (224 * 4000 // 256 + 34)  # rows along
    assert count_pixels((100, 100), (256, 256), 224, "bilinear") == 240 * 240  # from the edge to the crop's end
    assert count_pixels((300, 90_000), (256, 76_800), 224, "bilinear") < 224 * 300  # no strip's ends
