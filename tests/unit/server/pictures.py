"""Pictures and models small enough to be made anew for every run."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("ant", "bee", "cat", "dog", "eel")
SIDE = 64

TORCHVISION_YAML = f"""\
format: torchvision
architecture: mobilenet_v3_small
weights: model.safetensors
labels: [{", ".join(LABELS)}]
preprocessing: {{resize: {SIDE + 8}, crop: {SIDE}}}
"""

EXPORTED_YAML = f"""\
format: torch.export
program: model.pt2
labels: labels.txt
activation: sigmoid
preprocessing: {{resize: {SIDE}, crop: {SIDE}, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], interpolation: bicubic}}
"""


def picture(width: int = 120, height: int = 90, *, seed: int = 0) -> Image.Image:
    """An RGB picture of coloured blocks, so that no two seeds look alike to a network."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, encoding: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, format=encoding, **options)
    return file.getvalue()


OBEDIENT = """\
import os, pathlib, signal, sys, time

class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls()

    def predict(self, instances, **kwargs):
        return [self.obey(told) for told in instances]

    def obey(self, told):
        if told == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(told, str) and told.startswith("say "):
            print(told, file=sys.stderr)
            os._exit(3)
        if told == "eat":
            return len(bytearray(10**9))
        while told == "hang":
            time.sleep(60)
        if isinstance(told, dict):
            while not pathlib.Path(told["wait for"]).exists():
                time.sleep(0.005)
        return os.getpid()
"""


def write_obedient_artifact(folder: Path) -> Path:
    """A custom predictor that answers with its worker's pid; an instance may tell it to wait, to hang or to die."""
    (folder / "model.yaml").write_text("format: predictor\n")
    (folder / "predictor.py").write_text(OBEDIENT)
    return folder


def write_torchvision_artifact(folder: Path) -> Path:
    """mobilenet_v3_small with random weights."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=len(LABELS))
    with torch.no_grad():
        # Random weights say nearly the same of every picture: batch norms that have seen some keep their features apart.
        for module in network.modules():
            module.momentum = None
        network(torch.stack([torch.rand(3, 1, 1) * torch.randn(3, SIDE, SIDE) for _ in range(16)]))
        network.classifier[-1].weight *= 20
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "model.yaml").write_text(TORCHVISION_YAML)
    return folder


def write_exported_artifact(folder: Path) -> Path:
    """A convolution and a linear layer, as a program that takes any number of pictures."""
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, stride=4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(len(LABELS))
    ).eval()
    example = torch.zeros(2, 3, SIDE, SIDE)
    network(example)
    folder.mkdir(parents=True, exist_ok=True)
    export_program(network, folder / "model.pt2", example, dynamic=True)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in LABELS))
    (folder / "model.yaml").write_text(EXPORTED_YAML)
    return folder


def export_program(network, target: Path, example, *, dynamic: bool) -> None:
    """Save a network as a torch.export program."""
    import torch

    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), target)
