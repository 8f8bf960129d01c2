"""The photographs that every contender gets: 500 x 400 pixels, JPEG of quality 90, about 60 KB each."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
from pathlib import Path

from PIL import Image, ImageOps

# (package, path inside it); their free licences stand beside the files.
_FILES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
SIZE = (500, 400)
QUALITY = 90
MAX_PREDICTIONS = 5


def make_jpegs(size: tuple[int, int] = SIZE) -> list[bytes]:
    """The photographs, cut to the size's proportions and encoded; the same bytes on every call."""
    return [_encode(path, size) for path in _paths()]


def make_body(jpeg: bytes) -> bytes:
    """A predict request for one photograph, as Vertex AI's clients send it."""
    instance = {"content": base64.b64encode(jpeg).decode(), "mimeType": "image/jpeg"}
    return json.dumps({"instances": [instance], "parameters": {"maxPredictions": MAX_PREDICTIONS}}).encode()


def write(folder: Path) -> tuple[list[Path], list[Path]]:
    """Writes the photographs and the requests for them into `folder`; returns their paths, in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, bodies = [], []
    for number, jpeg in enumerate(make_jpegs()):
        pictures.append(folder / f"{number}.jpg")
        pictures[-1].write_bytes(jpeg)
        bodies.append(folder / f"{number}.json")
        bodies[-1].write_bytes(make_body(jpeg))
    return pictures, bodies


def _paths() -> list[Path]:
    found = []
    for package, path in _FILES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} ships the photographs: install pierhead[dev]")
        found.append(Path(spec.origin).parent / path)
    return found


def _encode(path: Path, size: tuple[int, int]) -> bytes:
    with Image.open(path) as image:
        fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    target = io.BytesIO()
    fitted.save(target, "JPEG", quality=QUALITY)
    return target.getvalue()
