"""What a crop keeps of a scaled picture, and little beside it, with the numbers of torch's and Pillow's kernels.

Those scale along the rows first, then along the columns, with 8 bits a channel between. The library, asked for both at
once, begins with the columns: a sixth of all values would differ by a level, and next to hard edges some by 46. So it
is asked twice.
"""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], RGB
Size = tuple[int, int]  # height, width

_FILTERS = {
    "bilinear": FilterType.bilinear,
    "bicubic": FilterType.catmull_rom,  # a = -0.5
    "lanczos": FilterType.lanczos3,
}
# What a kernel reaches to each side, in pixels of the picture or of what is made of it, whichever are larger.
_REACH = {"nearest": 0, "bilinear": 1, "bicubic": 2, "lanczos": 3}

# A band is there twice, since the library copies what it is given: both are to fit into a core's cache, and a
# photograph of megapixels is not to be in memory three times.
_BAND_BYTES = 1 << 20


@dataclass(frozen=True)
class _Span:
    """Along one side: what is made of which stretch of the picture."""

    first: int  # of the picture's pixels that the kernel reaches
    last: int  # is none of them
    start: float  # of the stretch, from the first
    length: float
    made: int  # pixels, of which a crop keeps the last


def count_pixels(shape: Size, size: Size, crop: int, interpolation: str) -> int:
    """Of the larger of the steps to `scale_middle`'s result: rows that are scaled along, or these scaled down."""
    down, along = _plan(shape, size, crop, interpolation)
    return along.made * max(down.last - down.first, down.made)


def scale_middle(pixels: Pixels, size: Size, crop: int, interpolation: str) -> Pixels:
    """The middle of a picture once that has `size`: [crop, crop, 3], which nothing else holds."""
    shape = (pixels.shape[0], pixels.shape[1])
    if interpolation == "nearest":
        return _pick(pixels, *(_find_nearest(*side, crop) for side in zip(shape, size, strict=True)))
    down, along = _plan(shape, size, crop, interpolation)
    kernel = _FILTERS[interpolation]
    # No name for an image between, which would still be held while what is made of it is copied.
    window = pixels[down.first : down.last, along.first : along.last]
    buffer = _scale_columns(_scale_rows(window, along, kernel), down, kernel).get_buffer()
    return np.frombuffer(buffer, dtype=np.uint8).reshape(down.made, along.made, 3)[-crop:, -crop:].copy()


def find_start(scaled: int, crop: int) -> int:
    """Where the middle begins along a side, as torchvision's CenterCrop rounds it."""
    return round((scaled - crop) / 2)


def _find_nearest(length: int, scaled: int, crop: int) -> npt.NDArray[np.intp]:
    """The nearest pixels along a side. Pillow adds up steps, which decides where two are as near: so does this."""
    start = find_start(scaled, crop)
    steps = np.full(start + crop, length / scaled)
    steps[0] /= 2
    return np.add.accumulate(steps)[start:].astype(np.intp)


def _pick(pixels: Pixels, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Pixels:
    """A quarter of the time that both indices take at once."""
    band: Pixels = pixels[rows, columns[0] : columns[-1] + 1]
    picked: Pixels = band.take(columns - columns[0], axis=1)
    return picked


def _plan(shape: Size, size: Size, crop: int, interpolation: str) -> list[_Span]:
    """Down the columns, and along the rows."""
    reach = _REACH[interpolation]
    return [_find_span(length, scaled, crop, reach) for length, scaled in zip(shape, size, strict=True)]


def _find_span(length: int, scaled: int, crop: int, reach: int) -> _Span:
    scale, end = length / scaled, find_start(scaled, crop) + crop
    # Weights are rounded to 16 bits by the largest of them. In a picture that grows, it stands at the edge: without
    # that, the others would be rounded otherwise than they are where all is scaled.
    begin = end - crop if scale > 1 else 0
    margin = reach * max(1.0, scale) + 1
    first = max(0, math.floor(begin * scale - margin))
    last = min(length, math.ceil(end * scale + margin))
    start = begin * scale - first
    # The library refuses what ends beyond the last pixel, be it by rounding.
    return _Span(first, last, start, min((end - begin) * scale, last - first - start), end - begin)


def _scale_rows(window: Pixels, along: _Span, kernel: FilterType) -> ImageData:
    """Each row to the pixels that are made of it, band by band."""
    height, width = window.shape[:2]
    most = max(1, _BAND_BYTES // (3 * width))
    if height <= most:
        return _scale_band(window, along, kernel)
    joined = BytesIO()  # gives its bytes away without a copy
    for top in range(0, height, most):
        joined.write(_scale_band(window[top : top + most], along, kernel).get_buffer())
    return ImageData(along.made, height, PixelType.U8x3, joined.getvalue())


def _scale_band(band: Pixels, along: _Span, kernel: FilterType) -> ImageData:
    height, width = band.shape[:2]
    given = ImageData(width, height, PixelType.U8x3, band.tobytes())
    return _resize(
        given, CropBox(along.start, 0, along.length, height), ImageData(along.made, height, PixelType.U8x3), kernel
    )


def _scale_columns(narrow: ImageData, down: _Span, kernel: FilterType) -> ImageData:
    """Each column to the pixels that are made of it."""
    width = narrow.width
    box = CropBox(0, down.start, width, down.length)
    return _resize(narrow, box, ImageData(width, down.made, PixelType.U8x3), kernel)


def _resize(given: ImageData, box: CropBox, made: ImageData, kernel: FilterType) -> ImageData:
    """A box of what is given, scaled to what is made of it. It lets go of the GIL."""
    # Made anew each time, in a microsecond: threads that shared one would wait for each other.
    Resizer().resize(given, made, ResizeOptions(ResizeAlg.convolution(kernel), crop_box=box))
    return made
