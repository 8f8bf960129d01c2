"""Encoded pictures to the tensors a classifier takes, as torchvision's own evaluation does it."""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pierhead_server.artifact import Preprocessing

# What Vertex AI documents for image models. Pillow knows more formats, some by outside programs: not for strangers.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO")

# What Pillow's decoders, written for sound files, raise on others. Fuzzing showed the first four; the rest are what
# parsing bytes raises in Python.
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
)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class BadPictureError(ValueError):
    """These bytes are no picture that can be classified; the message says why."""


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode a picture (of an animated one the first frame), turn it upright, and make it RGB.

    `max_pixels` is checked against the header, before anything is unpacked. Raises BadPictureError.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities in a stranger's file; there is nobody here to tell.
            warnings.simplefilter("ignore")
            # Pillow refuses what is over twice this, also inside a file (an icon's pictures, an animation's frames).
            Image.MAX_IMAGE_PIXELS = max_pixels // 2
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                image.load()
                return _to_rgb(_upright(image))
    except Image.DecompressionBombError:
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        raise BadPictureError(f"not a picture: send one of {', '.join(FORMATS)}") from None
    except _DECODE_ERRORS as error:
        raise BadPictureError(f"the picture is broken ({error}): send it whole") from None


def _too_large(max_pixels: int) -> BadPictureError:
    return BadPictureError(f"more than {max_pixels} pixels: send a smaller picture")


def _upright(image: Image.Image) -> Image.Image:
    # Phones store a picture as the sensor saw it and note in EXIF how it was held; who sends it has only ever seen it
    # upright.
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """As torchvision's loader does: transparency is dropped, not blended."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255, which leaves almost everything white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        # A palette with transparent entries has its colours only in RGBA.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def preprocess(image: Image.Image, how: Preprocessing, *, max_pixels: int) -> npt.NDArray[np.float32]:
    """An RGB picture as the model's input: float32 [3, crop, crop], scaled, cropped to the centre, normalised.

    Pixel for pixel what torchvision.transforms' Resize, CenterCrop, ToTensor and Normalize give on a PIL image, without
    the seconds its import takes. Raises BadPictureError.
    """
    cropped = _center_crop(_resize_shorter_side(image, how, max_pixels), how.crop)
    pixels = np.asarray(cropped, dtype=np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(how.mean, dtype=np.float32)) / np.asarray(how.std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _resize_shorter_side(image: Image.Image, how: Preprocessing, max_pixels: int) -> Image.Image:
    shorter, longer = sorted(image.size)
    longer = int(how.resize * longer / shorter)
    # A strip of 1 x 1,000,000 is small, and enormous once its shorter side is 256.
    if how.resize * longer > max_pixels:
        raise _too_large(max_pixels)
    size = (how.resize, longer) if image.width <= image.height else (longer, how.resize)
    return image if image.size == size else image.resize(size, _RESAMPLING[how.interpolation])


def _center_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))
