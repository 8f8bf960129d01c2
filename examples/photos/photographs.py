"""Photographs that are on every machine with the `dev` extra: scikit-image and scikit-learn ship them."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# (package, path inside it, type); the free licences stand beside the files.
_FILES = (
    ("skimage", "data/chelsea.png", "image/png"),
    ("skimage", "data/coffee.png", "image/png"),
    ("skimage", "data/motorcycle_left.png", "image/png"),
    ("skimage", "data/camera.png", "image/png"),
    ("skimage", "data/rocket.jpg", "image/jpeg"),
    ("sklearn", "datasets/images/china.jpg", "image/jpeg"),
    ("sklearn", "datasets/images/flower.jpg", "image/jpeg"),
)


class Photograph(NamedTuple):
    """One encoded photograph."""

    name: str
    content: bytes
    mime_type: str


def photographs() -> Iterator[Photograph]:
    """The photographs, read from the installed packages without importing them."""
    for package, path, mime_type in _FILES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} ships the photographs: install pierhead[dev]")
        file = Path(spec.origin).parent / path
        yield Photograph(file.name, file.read_bytes(), mime_type)
