"""Pictures to what a model takes: every kind that decodes, every kind that does not, and torchvision's own numbers."""

import io
import re
import subprocess
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import tifffile
from pierhead_server import images
from pierhead_server.config import Preprocessing
from pierhead_server.images import (
    BadPictureError,
    PixelBudget,
    bound_pillow,
    decode_image,
    fit,
    measure,
    read_image,
)
from PIL import Image, ImageOps

from tests.unit.server.pictures import encode, picture

MANY = 10**7
SMALL = Preprocessing(resize=8, crop=8)
ORIENTATION = 0x0112

# What turns an upright picture into what the sensor saw, by EXIF's value; Pillow's own table is the inverse of it.
LYING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def decode(data, max_pixels=MANY, **options):
    return decode_image(data, max_pixels=max_pixels, **options)


def by_pillow(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))


def with_orientation(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def test_rgb_is_kept_exactly():
    assert np.array_equal(decode(encode(picture())), picture())


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "MPO", "AVIF"])
def test_each_format_decodes(encoding):
    pixels = decode(encode(picture(64, 64), encoding))
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.uint8)
    assert difference(pixels, picture(64, 64)).mean() < 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 30},
        {"subsampling": 0},
        {"subsampling": 2},
        {"progressive": True},
        {"optimize": True, "restart_marker_rows": 1},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_decode_as_pillow_does_it(mode, options, monkeypatch):
    monkeypatch.setattr(images, "_load", None)  # libjpeg-turbo's own interface alone
    data = encode(picture(301, 203).convert(mode), "JPEG", **options)
    assert difference(decode(data), by_pillow(data)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "encoding"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "TIFF"),
        ("1", "TIFF"),
    ],
)
def test_each_mode_becomes_rgb(mode, encoding):
    pixels = decode(encode(picture().convert(mode), encoding))
    assert difference(pixels, picture().convert(mode).convert("RGB")).mean() < 4


def test_transparency_is_dropped_not_blended():
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert np.array_equal(decode(encode(image)), picture())


def test_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert decode(encode(image, transparency=bytes([0, 128])))[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("encoding", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(encoding):
    image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert decode(encode(image, encoding))[0, 0].tolist() == [128, 128, 128]


# What white is, of a kind of grey, and how it lies in a TIFF.
GREYS = {
    "floats of 0 to 1": (1.0, "<f4", {}),
    "floats of 0 to 1, big-endian": (1.0, ">f4", {}),
    "floats of 0 to 1, white is zero": (1.0, "<f4", {"photometric": "miniswhite"}),
    "floats of 0 to 255": (255.0, "<f4", {}),
    "floats of 0 to 65535": (65535.0, "<f4", {}),
    "uint32": (2**32 - 1, "<u4", {}),
    "uint32 of 16 bits": (65535, "<u4", {}),
    "uint32 of 8 bits": (255, "<u4", {}),
    "int32": (2**31 - 1, "<i4", {}),
    "int32, big-endian": (2**31 - 1, ">i4", {}),
    "int32 of 16 bits": (65535, "<i4", {}),
    "int32 of 8 bits": (255, "<i4", {"compression": "zlib"}),
    "int16": (2**15 - 1, "<i2", {}),
    "int16 of 8 bits": (255, "<i2", {}),
    "uint16": (65535, "<u2", {}),
    "uint16, big-endian": (65535, ">u2", {}),
    "uint16, white is zero": (65535, "<u2", {"photometric": "miniswhite"}),
    "uint16 in LZW": (65535, "<u2", {"compression": "zlib", "predictor": 2}),
}


@pytest.mark.parametrize(("white", "dtype", "options"), GREYS.values(), ids=GREYS)
def test_grey_of_any_depth_is_the_same_photograph(white, dtype, options):
    photo = np.asarray(picture().convert("L"))
    levels = photo / 255
    levels.flat[:2] = 0, 1  # a photograph uses what there is
    if options.get("photometric") == "miniswhite":
        levels = 1 - levels
    data = write_tiff((levels * white).astype(dtype), **options)
    assert difference(decode(data)[..., 0].flat[2:], photo.flat[2:]).max() <= 1


def write_tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "rgb" if pixels.ndim == 3 else "minisblack"} | options)
    return file.getvalue()


def test_12_bit_grey_is_scaled():
    """As microscopes write it: two values in three bytes."""
    data = bytearray(write_tiff(np.zeros((4, 6), dtype=np.uint8)))
    tags = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags
    start = tags["StripOffsets"].value[0]
    data = data[:start] + bytes([0x80, 0x08, 0x00] * 12)  # 0x800 of 0xFFF
    data[tags["BitsPerSample"].valueoffset] = 12
    data[tags["StripByteCounts"].valueoffset] = 36
    assert np.array_equal(decode(bytes(data)), np.full((4, 6, 3), 128))


def test_floats_that_overshoot_or_are_none_are_still_of_0_to_1():
    levels = np.full((4, 4), 0.5, dtype=np.float32)
    levels[0] = [1.2, -0.2, np.nan, np.inf]
    pixels = decode(write_tiff(levels))
    assert pixels[0, :, 0].tolist() == [255, 0, 0, 0]
    assert pixels[1, 0].tolist() == [128, 128, 128]


def test_integers_of_a_dark_picture_are_not_brightened():
    for dtype, white in (("<u4", 2**32 - 1), ("<i4", 2**31 - 1), ("<i2", 2**15 - 1)):
        assert decode(write_tiff(np.full((4, 4), white * 0.4, dtype=dtype)))[0, 0].tolist() == [102, 102, 102]


def test_what_is_below_black_is_black():
    levels = np.array([[-1000, 0], [1000, 2**31 - 1]], dtype="<i4")
    assert decode(write_tiff(levels))[..., 0].tolist() == [[0, 0], [0, 255]]


@pytest.mark.parametrize("level", [np.nan, 0.0])
def test_grey_of_nothing_is_black(level):
    assert not decode(write_tiff(np.full((4, 4), level, dtype=np.float32))).any()
    assert not decode(write_tiff(np.zeros((4, 4), dtype=np.int32))).any()


@pytest.mark.parametrize(("dtype", "options"), [("<u2", {}), (">u2", {}), ("<u2", {"compression": "zlib"})])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_scaled(dtype, options, channels):
    photo = np.asarray(picture().convert("RGBA"))[..., :channels]
    more = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    data = write_tiff((photo.astype(np.uint16) * 257).astype(dtype), **options, **more)
    assert np.array_equal(decode(data), picture())


def test_16_bit_colour_of_a_png_is_scaled():
    photo = np.asarray(picture(40, 30)).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in photo)
    header = (40).to_bytes(4) + (30).to_bytes(4) + bytes([16, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks
    )
    assert np.array_equal(decode(file), picture(40, 30))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.zeros((4, 4, 3), dtype=np.float32),
            "a TIFF whose kind of pixels is not known: send 8 or 16 bits a channel",
        ),
        (np.zeros((4, 4), dtype=np.float64), "a TIFF whose kind of pixels is not known: send 8 or 16 bits a channel"),
        (np.full((4, 4), 1e9, dtype=np.float32), "grey in floats beyond 65535: send 8 or 16 bits"),
    ],
)
def test_pixels_that_nobody_can_read_are_told(pixels, message):
    with pytest.raises(BadPictureError) as caught:
        decode(write_tiff(pixels))
    assert str(caught.value).startswith(message)


def test_photograph_of_a_phone_is_decoded_and_upright():
    data = make_heic(turned=True)
    assert difference(decode(data), picture(64, 32)).mean() < 8


def make_heic(*, turned=False):
    """A picture of 64 x 32 as a phone stores it; upright as it lies, or by the container's word."""
    if not turned:
        return encode(picture(64, 32), "HEIF", quality=60)
    lying = picture(64, 32).transpose(LYING[6])
    lying.info["exif"] = with_orientation(6).tobytes()
    return encode(lying, "HEIF", quality=60)


def test_photograph_of_a_phone_is_named_where_nothing_reads_it(monkeypatch):
    data = make_heic()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        patch.setattr(images, "FORMATS", images._list_formats())
        assert "HEIF" not in images.FORMATS
        with pytest.raises(BadPictureError, match="a HEIC that cannot be read here: send one of JPEG, PNG, GIF, BMP, "):
            decode(data)


@pytest.mark.parametrize("name", ["HEIC", "AVIF"])
def test_broken_file_of_a_phone_is_told(name):
    data = make_heic() if name == "HEIC" else encode(picture(64, 32), "AVIF")
    for cut in (12, 100, len(data) // 2, len(data) - 20):
        with pytest.raises(BadPictureError):
            decode(data[:cut])
    with pytest.raises(BadPictureError, match="more than 2047 pixels"):
        decode(data, max_pixels=2047)


@pytest.mark.parametrize("orientation", [0, 1, *LYING, 9])
@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_turns_the_picture_upright(encoding, orientation):
    lying = picture(64, 32)
    if orientation in LYING:
        lying = lying.transpose(LYING[orientation])
    pixels = decode(encode(lying, encoding, exif=with_orientation(orientation)))
    assert difference(pixels, picture(64, 32)).mean() < 8
    assert pixels.flags.c_contiguous


def test_orientation_of_a_grey_and_of_a_cmyk_jpeg_counts_too():
    for mode in ("L", "CMYK"):
        data = encode(picture(64, 32).convert(mode), "JPEG", exif=with_orientation(6))
        assert np.array_equal(decode(data), by_pillow(data))
        assert decode(data).shape == (64, 32, 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0junk",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\x04abc\0\0\0\0\0",  # the orientation is text
        b"Exif\0\0II*\0",  # it ends before it begins
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0MM\0+\0\x08\0\0" + b"\xff" * 40,
    ],
)
@pytest.mark.parametrize(
    ("encoding", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("WEBP", "RGB")]
)
def test_broken_exif_harms_no_picture(encoding, mode, exif):
    for options in ({}, {"dpi": (72, 72)}):  # without it Pillow looks for it in the EXIF, and forgives what is there
        data = encode(picture(64, 32).convert(mode), encoding, **options)
        assert decode(put_exif(data, exif, encoding)).shape == (32, 64, 3)


def put_exif(data, exif, encoding):
    """What no encoder writes, since they look at it."""
    tiff = exif.removeprefix(b"Exif\0\0")
    if encoding == "JPEG":
        return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + data[2:]
    if encoding == "PNG":
        chunk = b"eXIf" + tiff
        return data[:33] + len(tiff).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + data[33:]
    return encode(Image.open(io.BytesIO(data)), encoding, exif=tiff)


@pytest.mark.parametrize("encoding", ["WEBP", "GIF", "TIFF", "PNG"])
def test_animation_is_its_first_frame(encoding):
    options = {"lossless": True} if encoding == "WEBP" else {}
    first, second = (picture(seed=seed).quantize(64).convert("RGB") for seed in (1, 2))
    data = encode(first, encoding, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert difference(decode(data), first).mean() < 2


def test_what_follows_a_jpeg_is_ignored():
    data = encode(picture(), "JPEG")
    assert np.array_equal(decode(data + b"garbage" * 999), decode(data))


def test_jpeg_that_libjpeg_warns_of_is_what_pillow_makes_of_it():
    data = bytearray(encode(picture(400, 300), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 100] = bytes(100)
    assert np.array_equal(decode(bytes(data)), by_pillow(bytes(data)))


JPEG, PNG = encode(picture(90, 90), "JPEG"), encode(picture(90, 90))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture: send one of JPEG, PNG, GIF, BMP, WEBP, TIFF, ICO, AVIF"),
        (b"no picture", "not a picture: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture: "),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture: "),
        (JPEG[:4], "not a picture: "),
        (JPEG[:100], "the picture is broken ("),
        (JPEG[:-500], "the picture is broken ("),
        (encode(picture(90, 90), "JPEG", progressive=True)[:-500], "the picture is broken ("),
        (PNG[:-500], "the picture is broken ("),
        (encode(picture(101, 100)), "more than 10000 pixels: send a smaller picture"),
        (encode(picture(101, 100), "JPEG"), "more than 10000 pixels: send a smaller picture"),
    ],
)
def test_bad_picture_says_why(data, message):
    with pytest.raises(BadPictureError) as caught:
        decode(data, max_pixels=10_000)
    assert str(caught.value).startswith(message)


def resize_header(encoding, width, height):
    """A picture's file whose header gives other sizes than its data."""
    data = bytearray(encode(Image.new("L", (64, 64)), encoding))
    if encoding == "PNG":
        data[16:24] = width.to_bytes(4) + height.to_bytes(4)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    elif encoding == "JPEG":
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = height.to_bytes(2) + width.to_bytes(2)
    else:
        data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("encoding", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("size", [(0, 0), (0, 64), (64, 0)])
def test_picture_without_pixels_is_none(encoding, size):
    with pytest.raises(BadPictureError):
        decode(resize_header(encoding, *size))


@pytest.mark.parametrize("encoding", ["PNG", "JPEG", "BMP"])
def test_bomb_is_refused_before_it_is_unpacked(encoding):
    with pytest.raises(BadPictureError, match="more than 10000000 pixels"):
        decode(resize_header(encoding, 50_000, 50_000))  # 2.5 gigapixels are promised


def make_icon(side):
    """An icon whose directory says 16 x 16 of a picture that is larger."""
    data = bytearray(encode(picture(16, 16), "ICO", sizes=[(16, 16)]))
    content = encode(Image.new("L", (side, side)))
    offset = int.from_bytes(data[18:22], "little")
    data[14:18] = len(content).to_bytes(4, "little")
    return bytes(data[:offset]) + content


def test_bomb_inside_of_a_file_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is put back
    with warnings.catch_warnings():
        bound_pillow(10**6)
        with pytest.raises(BadPictureError, match="more than 1000000 pixels"):
            decode(make_icon(1100), max_pixels=10**6)
        assert decode(make_icon(900), max_pixels=10**6).shape == (900, 900, 3)
        for mode in ("L", "RGBA"):  # over what Pillow warns of
            assert decode(encode(Image.new(mode, (900, 900))), max_pixels=10**6).shape == (900, 900, 3)


def test_decoding_leaves_what_is_the_whole_processs_alone(monkeypatch):
    """Threads of a GPU's worker decode beside each other."""

    def refuse(*_, **__):
        raise AssertionError("it is for all threads")

    monkeypatch.setattr(warnings, "catch_warnings", refuse)
    monkeypatch.setattr(warnings, "simplefilter", refuse)
    before = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as threads:
        limits = [10**4, 10**6] * 50
        outcomes = list(threads.map(lambda most: outcome_of(encode(picture(120, 90)), most), limits))
    assert outcomes == ["refused", (90, 120, 3)] * 50
    assert before == Image.MAX_IMAGE_PIXELS


def outcome_of(data, max_pixels):
    try:
        return decode(data, max_pixels=max_pixels).shape
    except BadPictureError:
        return "refused"


@pytest.mark.parametrize("encoding", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO"])
def test_pixels_are_known_by_the_header(encoding):
    data = encode(picture(40, 30), encoding, **({"sizes": [(40, 30)]} if encoding == "ICO" else {}))
    assert measure(data, SMALL, max_pixels=MANY) == 1200
    with pytest.raises(BadPictureError, match="more than 1199 pixels: send a smaller picture"):
        measure(data, SMALL, max_pixels=1199)


@pytest.mark.parametrize("data", [b"", b"no picture", JPEG[:4], PNG[:20], b"\xff\xd8" * 9, resize_header("PNG", 0, 9)])
def test_what_is_no_picture_has_no_pixels(data):
    assert measure(data, SMALL, max_pixels=MANY) == 0


def put_second_header(data):
    """A PNG whose first header says one pixel; Pillow believes the last."""
    chunk = b"IHDR" + (1).to_bytes(4) + (1).to_bytes(4) + data[24:29]
    return data[:8] + data[8:12] + chunk + zlib.crc32(chunk).to_bytes(4) + data[8:]


def test_png_of_two_headers_is_refused_before_it_is_unpacked(monkeypatch):
    data = put_second_header(encode(picture(90, 80)))
    assert Image.open(io.BytesIO(data)).size == (90, 80)
    assert measure(data, SMALL, max_pixels=MANY) < 90 * 80
    monkeypatch.setattr(images, "_load", None)
    with pytest.raises(BadPictureError, match="it has other pixels than its header says: save it anew"):
        decode(data)


def test_icon_is_measured_by_the_picture_in_it():
    assert measure(make_icon(900), SMALL, max_pixels=MANY) == 900**2
    assert decode(make_icon(900)).shape == (900, 900, 3)
    bitmap = encode(picture(40, 30), "ICO", sizes=[(40, 30)], bitmap_format="bmp")
    assert measure(bitmap, SMALL, max_pixels=MANY) == 1200
    assert decode(bitmap).shape == (30, 40, 3)
    with pytest.raises(BadPictureError, match="more than 1000000 pixels"):
        decode(make_icon(1100), max_pixels=10**6)


def test_what_unpacks_to_more_than_was_measured_is_refused(monkeypatch):
    monkeypatch.setattr(images, "_load", lambda image: np.zeros((image.height + 1, image.width, 3), dtype=np.uint8))
    with pytest.raises(BadPictureError, match="it has other pixels than its header says"):
        decode(encode(picture(40, 30), "BMP"))


@pytest.mark.parametrize("size", [(1, 7600), (7600, 1)])
def test_strip_is_measured_by_what_scaling_makes_of_it(size):
    width, height = size
    strip, how = Image.new("RGB", size), Preprocessing(resize=256)
    pixels = np.array(strip)
    for given in (encode(strip), pixels, pixels.tolist()):
        assert measure(given, how, max_pixels=10**9) == 256 * 256 * 7600
        with pytest.raises(BadPictureError, match="more than 10000000 pixels: send a smaller picture"):
            measure(given, how, max_pixels=MANY)
    assert measure(np.zeros((height * 256, width * 256, 0), dtype=np.uint8), how, max_pixels=1) == 0  # is not scaled


@pytest.mark.parametrize("given", [[], [[]], [1], [[[1, 2, 3]], 5]])
def test_lists_that_are_no_pictures_are_left_to_whoever_reads_them(given):
    assert measure(given, Preprocessing(resize=1, crop=1), max_pixels=MANY) == 0


def test_scaling_takes_its_part_of_the_budget():
    budget = PixelBudget(10**7)
    budget.limit_memory(10**6)
    how = Preprocessing(resize=512, crop=400)  # its upper left 456 x 456 are made
    with pytest.raises(BadPictureError, match="its 207936 pixels take 1 MiB"):
        fit(np.zeros((10, 10, 3), dtype=np.uint8), how, max_pixels=MANY, budget=budget)
    small = Preprocessing(resize=256, crop=224)  # and 240 x 240
    assert fit(np.zeros((10, 10, 3), dtype=np.uint8), small, max_pixels=MANY, budget=budget).shape == (224, 224, 3)


def add_scans(data, count):
    """A JPEG's first scan of more than brightness, so many times more: it tells nothing new."""
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    end = re.compile(rb"\xff[^\0\xd0-\xd7]").search(data, start + 2).start()
    return data[:end] + data[start:end] * count + data[end:]


def test_jpeg_of_many_scans_is_refused():
    data = encode(picture(40, 30).convert("L"), "JPEG", progressive=True)
    usual = images._check_scans(data)
    assert 2 <= usual <= 10
    assert measure(data, SMALL, max_pixels=MANY) == 1200
    most = add_scans(data, 100 - usual)
    assert decode(most).shape == (30, 40, 3)
    assert measure(most, SMALL, max_pixels=1200) == 10 * 1200  # as long as ten of them
    for refuse in (decode, partial(measure, how=SMALL, max_pixels=MANY)):
        with pytest.raises(BadPictureError, match="more than 100 scans: save it anew"):
            refuse(add_scans(data, 101 - usual))


def test_scans_are_none_where_they_only_look_like_it():
    """As in the film that a phone puts behind its photograph, and in what stands before it."""
    looks = b"\xff\xda\0\x08" * 999
    before = b"\xff\xe5" + (2 + len(looks)).to_bytes(2) + looks
    for options in ({}, {"progressive": True}):
        data = encode(picture(40, 30), "JPEG", **options)
        data = data[:2] + before + data[2:] + looks
        assert measure(data, SMALL, max_pixels=MANY) == 1200
        assert decode(data).shape == (30, 40, 3)


def test_jpeg_of_nothing_but_segments_keeps_nobody_busy():
    data = encode(picture(40, 30), "JPEG")
    with pytest.raises(BadPictureError, match="more than 100 scans"):
        measure(data[:2] + b"\xff\xe5\0\x02" * 10_000 + data[2:], SMALL, max_pixels=MANY)


def test_tile_counts_as_it_is_unpacked():
    """libtiff unpacks a tile as a whole, however small the picture in its corner is."""
    data = write_tiff(np.zeros((16, 16, 3), dtype=np.uint8), tile=(4096, 4096), compression="zlib")
    assert len(data) < 100_000
    assert measure(data, SMALL, max_pixels=4096**2) == 4096**2
    assert decode(data, max_pixels=4096**2).shape == (16, 16, 3)
    with pytest.raises(BadPictureError, match="more than 10000000 pixels"):
        decode(data)
    usual = write_tiff(np.zeros((16, 16, 3), dtype=np.uint8), tile=(256, 256), compression="zlib")
    assert measure(usual, SMALL, max_pixels=MANY) == 256


# The budget


def test_threads_unpack_no_more_at_a_time_than_the_budget_has():
    budget, most, now, lock = PixelBudget(100), [], [], threading.Lock()
    budget.limit_memory(1000)

    def unpack(pixels):
        with budget.take(pixels, 10):
            with lock:
                now.append(pixels)
                most.append(sum(now))
            time.sleep(0.001)
            with lock:
                now.remove(pixels)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(unpack, [60, 30, 100, 10, 50, 40] * 10))
    assert max(most) <= 100
    assert max(most) > 60  # and yet they are beside each other where they fit


def test_budget_says_what_a_picture_would_take():
    budget = PixelBudget(10**8)
    budget.limit_memory(64 << 20)
    assert budget.most == (64 << 20) // 7
    message = "its 5242880 pixels take 80 MiB to decode, and a worker has 64 MiB for it: send a smaller picture"
    with pytest.raises(BadPictureError, match=message), budget.take(5 << 20, 16):
        pass


def test_jpeg_that_pillow_has_to_read_takes_what_pillow_takes():
    sound = encode(picture(100, 100), "JPEG")
    warned = sound[:-2] + b"\0" * 20 + sound[-2:]  # more than its header says is there
    budget = PixelBudget(MANY)
    budget.limit_memory(100 * 100 * 10)
    assert decode(sound, budget=budget).shape == (100, 100, 3)
    assert decode(warned).shape == (100, 100, 3)
    with pytest.raises(BadPictureError, match="send a smaller picture"):
        decode(warned, budget=budget)


def test_strip_that_scaling_would_blow_up_is_refused():
    strip = decode(encode(Image.new("RGB", (100_000, 1))))
    with pytest.raises(BadPictureError, match="more than 10000000 pixels"):
        fit(strip, Preprocessing(), max_pixels=MANY)


def make_sound_pictures():
    """A small file of each kind that takes another path through the decoders."""
    small = picture(40, 30)
    exif = with_orientation(6)
    exif[0x010E] = "text"
    files = [encode(small, encoding) for encoding in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "ICO")]
    files += [encode(small.convert(mode)) for mode in ("P", "LA", "1")]
    files += [encode(small.convert(mode), "JPEG") for mode in ("CMYK", "L")]
    files += [encode(small, encoding, exif=exif) for encoding in ("JPEG", "PNG", "WEBP")]
    files += [encode(small, encoding, save_all=True, append_images=[small]) for encoding in ("GIF", "MPO", "WEBP")]
    files += [encode(small, "TIFF", compression=name) for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    files += [write_tiff(np.ones((30, 40), dtype=dtype)) for dtype in (np.float32, np.int32)]
    files += [encode(small, "AVIF"), make_heic()]
    files += [encode(small, "JPEG", progressive=True), encode(Image.fromarray(np.ones((30, 40), dtype=np.uint16)))]
    return files


def test_broken_bytes_never_raise_anything_else(capfd):
    """Thousands of pictures, cut, prolonged or overwritten in places: each decodes or is a BadPictureError."""
    random = np.random.default_rng(0)
    sound, how = make_sound_pictures(), Preprocessing(resize=32, crop=32)
    refused, rounds = 0, 6000
    for round_ in range(rounds):
        data = bytearray(sound[round_ % len(sound)])
        match random.integers(0, 4):
            case 0:
                del data[random.integers(1, len(data)) :]
            case 1:
                place = random.integers(0, len(data))
                data[place:place] = random.bytes(random.integers(1, 20))
        for position in random.integers(0, len(data), random.integers(1, 8)):
            data[position] = random.integers(0, 256)
        try:
            read_image(bytes(data), how, max_pixels=10**6)
        except BadPictureError:
            refused += 1
    assert 0.2 < refused / rounds < 0.95  # both paths were gone
    capfd.readouterr()  # what libtiff prints by itself


@pytest.mark.parametrize(
    "size", [(120, 90), (90, 121), (64, 64), (57, 57), (500, 73), (30, 41), (256, 300), (1000, 801)]
)
@pytest.mark.parametrize(("interpolation", "most"), [("nearest", 0), ("bilinear", 1), ("bicubic", 2), ("lanczos", 2)])
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_scaling_and_cropping_are_torchvisions(size, interpolation, most, kind):
    image = picture(*size) if kind == "smooth" else noise(*size)
    how = Preprocessing(resize=64, crop=57, interpolation=interpolation)
    ours = fit(np.array(image), how, max_pixels=MANY)
    assert (ours.shape, ours.dtype) == ((57, 57, 3), np.uint8)
    assert ours.flags.c_contiguous
    apart = difference(ours, by_torchvision(image, how))
    assert apart.max() <= most
    assert apart.mean() < 0.02


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def by_torchvision(image, how):
    """What its version 1 transforms make of a PIL image."""
    from torchvision import transforms

    resize = transforms.Resize(how.resize, transforms.InterpolationMode(how.interpolation))
    return np.asarray(transforms.CenterCrop(how.crop)(resize(image)))


def test_pixels_of_the_right_size_are_kept_exactly():
    ours = fit(np.array(picture(64, 64)), Preprocessing(resize=64, crop=64), max_pixels=MANY)
    assert np.array_equal(ours, picture(64, 64))


def test_pixels_that_may_not_be_written_are_scaled_too():
    """As the binary inputs of the Open Inference Protocol are, which lie in the request's body."""
    pixels = np.array(picture(90, 70))
    locked = pixels.copy()
    locked.flags.writeable = False
    how = Preprocessing(resize=64, crop=57)
    assert np.array_equal(fit(locked, how, max_pixels=MANY), fit(pixels, how, max_pixels=MANY))


@pytest.mark.parametrize("side", [64, 57])
def test_what_is_made_is_nobody_elses(side):
    """A request's body is gone before a batch is computed, and torch warns of what it may not write."""
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    ours = fit(pixels, Preprocessing(resize=side, crop=57), max_pixels=MANY)
    assert ours.flags.owndata
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


def test_pictures_are_read_without_torch():
    program = "import sys, pierhead_server.images; sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_decoder_may_scale_where_it_is_allowed():
    data = encode(picture(1000, 800), "JPEG")
    assert decode(data, smallest_side=200).shape == (200, 250, 3)
    assert decode(data, smallest_side=201).shape == (300, 375, 3)  # it scales by eighths
    assert decode(data, smallest_side=801).shape == (800, 1000, 3)
    how = Preprocessing(resize=200, crop=180)
    apart = difference(
        read_image(data, how, max_pixels=MANY),
        read_image(data, how.model_copy(update={"scaled_decoding": True}), max_pixels=MANY),
    )
    assert apart.mean() < 1
    assert apart.max() < 12
