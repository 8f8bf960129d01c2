"""LitServe serving the same networks. Run as a program, in LitServe's own environment, with a PeerPlan as JSON.

`EagerClassifier` is written as LitServe's documentation writes its image classifiers: PIL, torchvision's transforms,
the eager network. The others have what the raw loop has: its decoding, and on a CPU its network of OpenVINO's, on a GPU
its AOTInductor packages.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import msgspec
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from bench.server.networks import load_classifier
from bench.server.openvino_network import read_openvino
from bench.server.peers import PATH, PeerPlan
from bench.server.preprocessing import CROP, RESIZE, preprocess


class _Classifier(litserve.LitAPI):  # type: ignore[misc]
    """What both have in common: the request's and the answer's JSON."""

    def __init__(self, plan: PeerPlan) -> None:
        super().__init__(max_batch_size=plan.batch, batch_timeout=plan.batch_timeout, api_path=PATH)
        self.plan = plan

    def setup(self, device: str) -> None:
        if self.plan.threads:
            torch.set_num_threads(self.plan.threads)
        self.device = device
        self.labels = (Path(self.plan.artifact) / "labels.txt").read_text(encoding="utf-8").splitlines()
        self.load()

    def load(self) -> None:
        raise NotImplementedError

    def decode_picture(self, jpeg: bytes) -> Tensor:
        raise NotImplementedError

    def compute(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe would give FastAPI an annotation
        (instance,) = request["instances"]
        return self.decode_picture(base64.b64decode(instance["content"])), request["parameters"]["maxPredictions"]

    def batch(self, inputs: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, list[int]]:
        return torch.stack([picture for picture, _ in inputs]), [most for _, most in inputs]

    def predict(self, x: Any) -> Any:
        pictures, most = x
        with torch.inference_mode():
            if isinstance(most, list):
                return [row.topk(count) for row, count in zip(self.compute(pictures), most, strict=True)]
            return self.compute(pictures.unsqueeze(0))[0].topk(most)

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        ids = output.indices.tolist()
        return {
            "predictions": [
                {
                    "ids": [str(index) for index in ids],
                    "displayNames": [self.labels[index] for index in ids],
                    "confidences": output.values.tolist(),
                }
            ]
        }


class EagerClassifier(_Classifier):
    """The documentation's way."""

    def load(self) -> None:
        classifier = load_classifier(self.plan.model, Path(self.plan.artifact))
        self.network = classifier.network.to(self.device)
        mean, std = (value.flatten() / 255 for value in (classifier.mean, classifier.std))
        self.transform = transforms.Compose(
            [
                transforms.Resize(RESIZE, interpolation=InterpolationMode.BILINEAR),
                transforms.CenterCrop(CROP),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def decode_picture(self, jpeg: bytes) -> Tensor:
        return self.transform(Image.open(io.BytesIO(jpeg)).convert("RGB"))  # type: ignore[no-any-return]

    def compute(self, pictures: Tensor) -> Tensor:
        return self.network(pictures.to(self.device)).softmax(1)  # type: ignore[no-any-return]


class OpenvinoClassifier(_Classifier):
    """The raw loop's way on a CPU."""

    def load(self) -> None:
        assert self.plan.network
        self.network = read_openvino(Path(self.plan.network))

    def decode_picture(self, jpeg: bytes) -> Tensor:
        return preprocess(jpeg)[0]

    def compute(self, pictures: Tensor) -> Tensor:
        return self.network(pictures.contiguous(memory_format=torch.channels_last))


class CompiledClassifier(_Classifier):
    """The raw loop's way on a GPU."""

    def load(self) -> None:
        self.packages = {
            batch: torch._inductor.aoti_load_package(file, run_single_threaded=True)
            for batch, file in self.plan.packages.items()
            if batch in (1, self.plan.batch)
        }

    def decode_picture(self, jpeg: bytes) -> Tensor:
        return preprocess(jpeg)[0]

    def compute(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(self.device).contiguous(memory_format=torch.channels_last)
        whole = self.packages.get(len(pictures))
        if whole:
            return whole(pictures)  # type: ignore[no-any-return]
        # A package computes batches of its own size alone.
        return torch.cat([self.packages[1](picture) for picture in torch.split(pictures, 1)])


def main(argument: str) -> None:
    plan = msgspec.json.decode(argument, type=PeerPlan)
    api = {"eager": EagerClassifier, "openvino": OpenvinoClassifier, "aoti": CompiledClassifier}[plan.form](plan)
    server = litserve.LitServer(
        api, accelerator=plan.device, workers_per_device=plan.workers, fast_queue=plan.fast_queue
    )
    server.run(host="127.0.0.1", port=plan.port, log_level=plan.log_level, generate_client_file=False)


if __name__ == "__main__":
    main(sys.argv[1])
