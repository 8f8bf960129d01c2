"""Pictures to what a classifier takes: uint8 [crop, crop, 3], as torchvision's own evaluation scales and crops it.

JPEGs are decoded by libjpeg-turbo itself, everything else by Pillow, and scaled as `scaling` says; there is no torch
here. Full-size decoding differs from Pillow and torchvision's v1 transforms by none of 255 levels in almost all pixels,
by one in some, and by two in a few that lie between two levels.
"""

import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.IcoImagePlugin import IcoImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pierhead_server.config import Preprocessing
from pierhead_server.scaling import Pixels as Pixels
from pierhead_server.scaling import count_pixels, find_start, scale_middle


def _list_formats() -> tuple[str, ...]:
    """What Vertex AI documents for image models, and what browsers make; what phones make, where that is installed.

    Pillow knows more formats, some by outside programs: not for strangers.
    """
    formats = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "AVIF")
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return formats
    # One thread: each worker has one CPU.
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return (*formats, "HEIF")


FORMATS = _list_formats()

# What Pillow's decoders, written for sound files, raise on others. Fuzzing showed the first four; the rest are what
# parsing bytes raises in Python, and libheif's binding.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    EOFError,
    OverflowError,
    LookupError,
    TypeError,
    RuntimeError,
)

_ORIENTATION = 0x0112  # EXIF's tag

_HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
# TIFF's first bytes, and its tags.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_USUAL_TILE = 1024
_WHITE_IS_ZERO = 0
# What turns a picture upright, by the tag's value.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


class BadPictureError(ValueError):
    """These bytes are no picture that can be classified; the message says why."""


def bound_pillow(max_pixels: int) -> None:
    """Once a process, before its threads: both are the whole process's, and no picture's."""
    # Pillow refuses what is over twice this, also inside a file (an icon's pictures, an animation's frames).
    Image.MAX_IMAGE_PIXELS = max_pixels // 2
    # It warns of oddities in a stranger's file; there is nobody here to tell.
    warnings.filterwarnings("ignore", module=r"PIL\.")


# What decoding takes at its peak, seen for each format and mode: the decoder's own pixels, RGB beside them, an array.
_JPEG_BYTES = 7  # of libjpeg-turbo, turned upright
_WEBP_BYTES = 24
_MOST_BYTES = 16  # of all others
_SCALED_BYTES = 7  # of what scaling makes: each step is there twice, for the library copies what it is given


class PixelBudget:
    """What may be unpacked at a time in this process, by all of its threads; one picture may take all of it."""

    def __init__(self, most: int) -> None:
        self.most = most  # pixels of a picture
        self._bytes = most * _WEBP_BYTES
        self._taken = 0
        self._changed = threading.Condition()

    def limit_memory(self, most: int) -> None:
        """Have it fit into so many bytes."""
        self._bytes = min(self._bytes, most)
        self.most = min(self.most, self._bytes // _JPEG_BYTES)

    @contextmanager
    def take(self, pixels: int, bytes_per_pixel: int) -> Iterator[None]:
        """Wait until there is room, and hold it. Raises BadPictureError for more than there is."""
        need = pixels * bytes_per_pixel
        if need > self._bytes:
            raise BadPictureError(
                f"its {pixels} pixels take {need >> 20} MiB to decode, and a worker has {self._bytes >> 20} MiB for it"
                ": send a smaller picture"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._taken + need <= self._bytes)
            self._taken += need
        try:
            yield
        finally:
            with self._changed:
                self._taken -= need
                self._changed.notify_all()


def measure(picture: bytes | Pixels | list[Any], how: Preprocessing, *, max_pixels: int) -> int:
    """What a picture costs in pixels: its own, or those that scaling makes of them where these are more.

    A file is measured by its header, 0 is what is no picture. Raises BadPictureError for more than `max_pixels`.
    """
    if isinstance(picture, bytes):
        width, height = _read_size(picture)
    else:
        height, width = _outline(picture)
        if min(width, height) == how.resize:
            return 0  # nothing is unpacked, and nothing scaled
    pixels = max(width * height, _count_scaled(width, height, how.resize))
    if pixels > max_pixels:
        raise _too_large(max_pixels)
    if isinstance(picture, bytes) and picture.startswith(_JPEG):
        # A scan visits all pixels, but the first few cost no more than decoding does anyway.
        pixels *= max(1, _check_scans(picture) // _USUAL_SCANS)
    return pixels


def _outline(picture: Pixels | list[Any]) -> tuple[int, int]:
    """Height and width; a list is not looked through: whoever reads it, says what is wrong with it."""
    if isinstance(picture, list):
        return len(picture), len(picture[0]) if picture and isinstance(picture[0], list) else 0
    return picture.shape[0], picture.shape[1]


def _count_scaled(width: int, height: int, resize: int) -> int:
    """A strip of 1 x 7600 is small, and has millions of pixels once its shorter side is 256."""
    shorter, longer = sorted((width, height))
    return resize * int(resize * longer / shorter) if shorter else 0


_PNG_HEADER = struct.Struct("!16xII")  # signature, length and type of the first chunk, width, height
_JPEG = b"\xff\xd8"


def _read_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header; (0, 0) of what is no picture: whoever decodes it, says why."""
    try:
        quick = _read_quickly(data)
        if quick:
            return quick
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return _size_of(image, data)
    except (Image.DecompressionBombError, *_DECODE_ERRORS):
        return 0, 0


def _read_quickly(data: bytes) -> tuple[int, int] | None:
    """Of a PNG and a JPEG, which are most of all pictures: Pillow takes ten times as long to open one."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR" and len(data) >= _PNG_HEADER.size:
        return _PNG_HEADER.unpack_from(data)
    if data.startswith(_JPEG):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None  # Pillow may know more
        return width, height
    return None


def _size_of(image: Image.Image, data: bytes) -> tuple[int, int]:
    """What an opened picture will have once it is loaded: an icon's directory may say less than the picture in it."""
    if isinstance(image, TiffImageFile):
        return _size_of_tiff(image)
    if not isinstance(image, IcoImageFile):
        return image.size
    with Image.open(BytesIO(data[image.ico.entry[0].offset :]), formats=("PNG", "DIB")) as inner:
        # A bitmap's mask counts as the lower half of it.
        return inner.width, inner.height if inner.format == "PNG" else inner.height // 2


def _size_of_tiff(image: TiffImageFile) -> tuple[int, int]:
    """libtiff unpacks a tile as a whole, of which the picture may be a corner."""
    tile = (image.tag_v2.get(_TILE_WIDTH, 0), image.tag_v2.get(_TILE_HEIGHT, 0))
    if not all(isinstance(side, int) for side in tile):
        raise ValueError("tiles of no size")
    # A picture of less than one tile of the usual size is no oddity.
    return image.size if max(tile) <= _USUAL_TILE else (max(image.width, tile[0]), max(image.height, tile[1]))


# As many as libtiff takes, too; encoders write about ten.
_MOST_SCANS = 100
_USUAL_SCANS = 10
_MOST_SEGMENTS = 10_000  # a file of nothing else would keep Python busy; a large profile has 255
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")  # but those that stand within a scan
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ONE_PASS = (0xC0, 0xC1)  # frames whose only scan may have all channels; libjpeg then refuses another
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _check_scans(data: bytes) -> int:
    """A JPEG's scans, found as libjpeg finds them. Raises BadPictureError for more than any encoder writes.

    Each may be a few bytes, and decoding it visits all of the picture.
    """
    scans, position, one_pass = 0, 2, 0
    for _ in range(_MOST_SEGMENTS):
        match = _MARKER.search(data, position)
        if match is None:
            return scans
        kind, position = match[1][0], match.end()
        if kind == _EOI:
            return scans
        if kind == _SOI:
            continue
        if kind in _FRAMES:
            one_pass = data[position + 7] if kind in _ONE_PASS and position + 7 < len(data) else 0
        elif kind == _SOS:
            scans += 1
            if scans == 1 and one_pass and data[position + 2 : position + 3] == bytes([one_pass]):
                return 1
            if scans > _MOST_SCANS:
                break
        position += max(2, int.from_bytes(data[position : position + 2]))
    raise BadPictureError(f"more than {_MOST_SCANS} scans: save it anew")


def decode_image(data: bytes, *, max_pixels: int, smallest_side: int = 0, budget: PixelBudget | None = None) -> Pixels:
    """Decode a picture (of an animated one the first frame), turn it upright, and make it RGB.

    `max_pixels` is checked against the header, before anything is unpacked; of a `budget` it waits for its part. With
    a `smallest_side` a JPEG may come scaled down by the decoder, its sides not below that. Raises BadPictureError.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = _size_of(image, data)
            pixels = width * height
            if pixels > max_pixels:
                raise _too_large(max_pixels)
            quick = _read_quickly(data)
            if quick and quick[0] * quick[1] != pixels:
                raise _lying()  # such as a PNG of two headers
            if image.format in ("JPEG", "MPO"):
                _check_scans(data)
            jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
            decoded = None
            if jpeg:
                with budget.take(pixels, _JPEG_BYTES) if budget else nullcontext():
                    decoded = _decode_jpeg(data, image, smallest_side)
            if decoded is None:
                each = _WEBP_BYTES if image.format == "WEBP" else _MOST_BYTES
                with budget.take(pixels, each) if budget else nullcontext():
                    decoded = _load(image)
            if decoded.shape[0] * decoded.shape[1] > pixels:
                raise _lying()
            return decoded
    except Image.DecompressionBombError:
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        if data.startswith(_TIFF):
            raise BadPictureError(
                "a TIFF whose kind of pixels is not known: send 8 or 16 bits a channel, or grey of 32"
            ) from None
        known = ", ".join(FORMATS)
        if _HEIC.match(data):
            raise BadPictureError(f"a HEIC that cannot be read here: send one of {known}") from None
        raise BadPictureError(f"not a picture: send one of {known}") from None
    except BadPictureError:
        raise
    except _DECODE_ERRORS as error:
        raise BadPictureError(f"the picture is broken ({error}): send it whole") from None


def _lying() -> BadPictureError:
    """What a request costs is planned by the headers of its pictures."""
    return BadPictureError("it has other pixels than its header says: save it anew")


def _too_large(max_pixels: int) -> BadPictureError:
    return BadPictureError(f"more than {max_pixels} pixels: send a smaller picture")


def _decode_jpeg(data: bytes, image: Image.Image, smallest_side: int) -> Pixels | None:
    """None where libjpeg warns: Pillow knows which of its warnings still leave a whole picture."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=smallest_side, min_width=smallest_side)
    except ValueError:
        return None
    return _turn_upright(pixels, image)


def _load(image: Image.Image) -> Pixels:
    image.load()
    return _turn_upright(_to_rgb(image), image)


def _turn_upright(pixels: Pixels, image: Image.Image) -> Pixels:
    """Phones store a picture as the sensor saw it and note in EXIF how it was held; who sends it has only ever seen it
    upright.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DECODE_ERRORS:
        return pixels  # the picture is sound, and what stands beside it is not
    upright = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return np.ascontiguousarray(upright(pixels)) if upright else pixels


def _to_rgb(image: Image.Image) -> Pixels:
    """As torchvision's loader does: transparency is dropped, not blended."""
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow would clip at 255, which leaves almost everything white, or black.
        image = Image.fromarray(_to_grey(image))
    if image.mode == "P":
        # A palette with transparent entries has its colours only in RGBA.
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Grey of more than 8 bits in 8 of them. What white is, 16 bits say; of 32 bits and of floats the values tell."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    levels = np.array(image)
    if image.mode == "F":
        grey = _scale_floats(levels)
    elif image.mode == "I":
        grey = _scale_integers(levels, signed=tags.get(_SAMPLE_FORMAT) == (2,), bits=tags.get(_BITS, (32,))[0])
    else:
        grey = (levels >> (tags.get(_BITS, (16,))[0] - 8)).astype(np.uint8)
    # Pillow turns these of 8 bits alone.
    return 255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _scale_floats(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """White is 1, 255 or 65535: the first of them that no value is beyond, but for what scaling overshoots.

    In place: four bytes a pixel are enough to hold once.
    """
    np.nan_to_num(levels, copy=False, posinf=0, neginf=0)
    highest = levels.max()
    white = next((white for white in (1.0, 255.0, 65535.0) if highest <= 2 * white), None)
    if white is None:
        raise BadPictureError("grey in floats beyond 65535: send 8 or 16 bits")
    with np.errstate(over="ignore"):  # far below zero is black, whatever comes of it
        levels *= 255 / white
    np.rint(levels, out=levels)
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def _scale_integers(levels: npt.NDArray[np.int32], *, signed: bool, bits: int) -> npt.NDArray[np.uint8]:
    """Most writers widen 8 or 16 bits to 32; a value beyond those says that all of them count."""
    if bits == 32 and not signed:
        levels = levels.view(np.uint32)  # Pillow has no unsigned mode
    used = int(levels.max()).bit_length()
    whole = bits - 1 if signed else bits  # the sign is no bit of a level
    width = next(width for width in (8, min(16, whole), whole) if used <= width)
    np.clip(levels, 0, None, out=levels)
    return (levels >> (width - 8)).astype(np.uint8)


def read_image(data: bytes, how: Preprocessing, *, max_pixels: int, budget: PixelBudget | None = None) -> Pixels:
    """An encoded picture, decoded, scaled and cropped. Raises BadPictureError."""
    smallest_side = how.resize if how.scaled_decoding else 0
    pixels = decode_image(data, max_pixels=max_pixels, smallest_side=smallest_side, budget=budget)
    return fit(pixels, how, max_pixels=max_pixels, budget=budget)


def fit(pixels: Pixels, how: Preprocessing, *, max_pixels: int, budget: PixelBudget | None = None) -> Pixels:
    """An RGB picture, its shorter side scaled and its middle cropped: [crop, crop, 3]. Raises BadPictureError.

    Normalising is the model's first step: bytes are a quarter of what floats would be to move.
    """
    height, width = _scaled_size(pixels, how.resize)
    # A strip of 1 x 1,000,000 is small, and enormous once its shorter side is 256.
    if height * width > max_pixels:
        raise _too_large(max_pixels)
    if (height, width) == pixels.shape[:2]:
        top, left = find_start(height, how.crop), find_start(width, how.crop)
        return pixels[top : top + how.crop, left : left + how.crop].copy()  # may be a request's body, which is locked
    size = (height, width)
    most = count_pixels((pixels.shape[0], pixels.shape[1]), size, how.crop, how.interpolation)
    with budget.take(most, _SCALED_BYTES) if budget else nullcontext():
        return scale_middle(pixels, size, how.crop, how.interpolation)


def _scaled_size(pixels: Pixels, resize: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)
