"""Pictures to what a classifier takes: uint8 [crop, crop, 3], as torchvision's own evaluation scales and crops it.

JPEGs are decoded by libjpeg-turbo itself, everything else by Pillow; scaling is torch's, whose uint8 kernels use the
vector units. Full-size decoding differs from Pillow and torchvision's v1 transforms by none of 255 levels in almost all
pixels, by one in some, and by two in a few that lie between two levels.
"""

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

from pierhead_server.config import Preprocessing

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], RGB

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

_ORIENTATION = 0x0112  # EXIF's tag
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


def decode_image(data: bytes, *, max_pixels: int, smallest_side: int = 0) -> Pixels:
    """Decode a picture (of an animated one the first frame), turn it upright, and make it RGB.

    `max_pixels` is checked against the header, before anything is unpacked. With a `smallest_side` a JPEG may come
    scaled down by the decoder, its sides not below that. Raises BadPictureError.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities in a stranger's file; there is nobody here to tell.
            warnings.simplefilter("ignore")
            # Pillow refuses what is over twice this, also inside a file (an icon's pictures, an animation's frames).
            Image.MAX_IMAGE_PIXELS = max_pixels // 2
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise _too_large(max_pixels)
                if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                    return _decode_jpeg(data, image, smallest_side)
                return _load(image)
    except Image.DecompressionBombError:
        raise _too_large(max_pixels) from None
    except UnidentifiedImageError:
        raise BadPictureError(f"not a picture: send one of {', '.join(FORMATS)}") from None
    except BadPictureError:
        raise
    except _DECODE_ERRORS as error:
        raise BadPictureError(f"the picture is broken ({error}): send it whole") from None


def _too_large(max_pixels: int) -> BadPictureError:
    return BadPictureError(f"more than {max_pixels} pixels: send a smaller picture")


def _decode_jpeg(data: bytes, image: Image.Image, smallest_side: int) -> Pixels:
    orientation = image.getexif().get(_ORIENTATION)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=smallest_side, min_width=smallest_side)
    except ValueError:
        # It takes libjpeg's warnings for errors; Pillow knows which of them still leave a whole picture.
        return _load(image)
    upright = _UPRIGHT.get(orientation) if orientation else None
    return np.ascontiguousarray(upright(pixels)) if upright else pixels


def _load(image: Image.Image) -> Pixels:
    image.load()
    # Phones store a picture as the sensor saw it and note in EXIF how it was held; who sends it has only ever seen it
    # upright.
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """As torchvision's loader does: transparency is dropped, not blended."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255, which leaves almost everything white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P":
        # A palette with transparent entries has its colours only in RGBA.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(data: bytes, how: Preprocessing, *, max_pixels: int) -> Pixels:
    """An encoded picture, decoded, scaled and cropped. Raises BadPictureError."""
    smallest_side = how.resize if how.scaled_decoding else 0
    return fit(decode_image(data, max_pixels=max_pixels, smallest_side=smallest_side), how, max_pixels=max_pixels)


def fit(pixels: Pixels, how: Preprocessing, *, max_pixels: int) -> Pixels:
    """An RGB picture, its shorter side scaled and its middle cropped: [crop, crop, 3]. Raises BadPictureError.

    Normalising is the model's first step: bytes are a quarter of what floats would be to move.
    """
    height, width = _scaled_size(pixels, how.resize)
    # A strip of 1 x 1,000,000 is small, and enormous once its shorter side is 256.
    if height * width > max_pixels:
        raise _too_large(max_pixels)
    if not pixels.flags.writeable:
        pixels = pixels.copy()  # of a request's body; torch warns of what it may not write
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # channels last in memory, as it lies
    if (height, width) != pixels.shape[:2]:
        batch = _scale(batch, (height, width), how.interpolation)
    top, left = round((height - how.crop) / 2), round((width - how.crop) / 2)
    cropped = batch[0, :, top : top + how.crop, left : left + how.crop].permute(1, 2, 0)
    # By torch: scaling leaves the channels apart, and numpy takes twice as long to put them beside each other.
    return cropped.contiguous().numpy()


def _scaled_size(pixels: Pixels, resize: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    if width <= height:
        return int(resize * height / width), resize
    return resize, int(resize * width / height)


def _scale(batch: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    if interpolation == "nearest":
        return functional.interpolate(batch, size, mode="nearest-exact")
    return functional.interpolate(batch, size, mode=interpolation, antialias=True, align_corners=False)
