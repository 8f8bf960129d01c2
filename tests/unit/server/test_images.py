"""Pictures to inputs: every kind that decodes, every kind that does not, and torchvision's own numbers."""

import zlib

import numpy as np
import pytest
from pierhead_server.artifact import Preprocessing
from pierhead_server.images import BadPictureError, decode_image, preprocess
from PIL import Image

from tests.unit.server.pictures import encode, picture

MANY = 10**7


def decode(data, max_pixels=MANY):
    return decode_image(data, max_pixels=max_pixels)


def test_rgb_is_kept_exactly():
    assert np.array_equal(decode(encode(picture())), picture())


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO"])
def test_each_format_decodes(encoding):
    image = decode(encode(picture(64, 64), encoding))
    assert (image.mode, image.size) == ("RGB", (64, 64))


@pytest.mark.parametrize(
    ("mode", "encoding"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")],
)
def test_each_mode_becomes_rgb(mode, encoding):
    image = decode(encode(picture().convert(mode), encoding))
    expected = picture().convert(mode).convert("RGB")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)).mean() < 4


def test_transparency_is_dropped_not_blended():
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(decode(encode(image)), picture())


def test_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert decode(encode(image, transparency=bytes([0, 128]))).getpixel((0, 0)) == (200, 100, 50)


def test_16_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert decode(encode(image)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(encoding):
    upright = Image.new("RGB", (64, 32), "blue")
    upright.paste("red", (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, the sensor lies on its side: turn it 90 degrees clockwise to look at it
    image = decode(encode(upright.transpose(Image.Transpose.ROTATE_90), encoding, exif=exif))
    assert image.size == (64, 32)
    red, _, blue = image.getpixel((4, 16))
    assert red > 200
    assert blue < 60


def test_animation_is_its_first_frame():
    data = encode(picture(seed=1), "WEBP", save_all=True, append_images=[picture(seed=2)], lossless=True)
    assert np.array_equal(decode(data), picture(seed=1))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", "not a picture: send one of JPEG, PNG, GIF, BMP, WEBP, TIFF, ICO"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture: "),
        (encode(picture(90, 90), "JPEG")[:-500], "the picture is broken ("),
        (encode(picture(90, 90))[:-500], "the picture is broken ("),
        (encode(picture(101, 100)), "more than 10000 pixels: send a smaller picture"),
    ],
)
def test_bad_picture_says_why(data, message):
    with pytest.raises(BadPictureError) as caught:
        decode(data, max_pixels=10_000)
    assert str(caught.value).startswith(message)


def test_bomb_is_refused_before_it_is_unpacked():
    data = bytearray(encode(Image.new("1", (64, 64))))
    data[16:24] = (50_000).to_bytes(4) * 2  # the header promises 2.5 gigapixels
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    with pytest.raises(BadPictureError, match="more than 10000000 pixels"):
        decode(bytes(data))


def test_strip_that_scaling_would_blow_up_is_refused():
    strip = decode(encode(Image.new("RGB", (100_000, 1))))
    with pytest.raises(BadPictureError, match="more than 10000000 pixels"):
        preprocess(strip, Preprocessing(), max_pixels=MANY)


def test_broken_bytes_never_raise_anything_else():
    """A thousand pictures with some bytes overwritten: each decodes or is a BadPictureError."""
    random = np.random.default_rng(0)
    sound = [encode(picture(40, 30), encoding) for encoding in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO")]
    sound += [encode(picture(40, 30).convert(mode)) for mode in ("P", "LA", "1")]
    for round_ in range(1000):
        data = bytearray(sound[round_ % len(sound)])
        for position in random.integers(0, len(data), random.integers(1, 8)):
            data[position] = random.integers(0, 256)
        try:
            preprocess(decode(bytes(data)), Preprocessing(), max_pixels=MANY)
        except BadPictureError:
            continue


@pytest.mark.parametrize("size", [(120, 90), (90, 121), (64, 64), (500, 73), (256, 300)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_input_is_what_torchvision_makes(size, interpolation):
    from torchvision import transforms

    how = Preprocessing(resize=64, crop=57, interpolation=interpolation)
    reference = transforms.Compose(
        [
            transforms.Resize(how.resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(how.crop),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )
    ours = preprocess(picture(*size), how, max_pixels=MANY)
    assert (ours.shape, ours.dtype) == ((3, 57, 57), np.float32)
    np.testing.assert_allclose(ours, reference(picture(*size)).numpy(), atol=1e-6)
