"""A classifier as a network of OpenVINO's, on one thread: a form of the raw loop, and what peers serve.

`python -m bench.server.openvino_network MODEL ARTIFACT FILE` writes it as FILE, whose name ends in .xml.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import openvino
import torch
from openvino.preprocess import PrePostProcessor
from torch import Tensor

from bench.server.forms import Precision
from bench.server.networks import load_classifier, make_example
from bench.server.preprocessing import CROP

_OPTIONS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}
_HINTS: dict[Precision, str] = {Precision.float32: "f32", Precision.bfloat16: "bf16"}


def make_openvino(name: str, artifact: Path, precision: Precision = Precision.float32) -> Callable[[Tensor], Tensor]:
    """What computes pictures as they lie, the channels of a pixel beside each other."""
    return _compile(_convert(name, artifact), precision)


def read_openvino(file: Path) -> Callable[[Tensor], Tensor]:
    """The same of a file, in float32. What it gives lies in memory that the next call writes to."""
    return _compile(openvino.Core().read_model(file), Precision.float32)


def _compile(network: openvino.Model, precision: Precision) -> Callable[[Tensor], Tensor]:
    options = _OPTIONS | {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    request = openvino.Core().compile_model(network, "CPU", options).create_infer_request()

    def run(pictures: Tensor) -> Tensor:
        request.infer([pictures.permute(0, 2, 3, 1).numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return run


@functools.cache
def _convert(name: str, artifact: Path) -> openvino.Model:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(load_classifier(name, artifact), (make_example(2),), dynamic_shapes=shapes)
    network = openvino.convert_model(program)
    network.reshape([-1, 3, CROP, CROP])
    steps = PrePostProcessor(network)
    steps.input().tensor().set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


def main(arguments: Sequence[str]) -> None:
    name, artifact, file = arguments
    openvino.save_model(_convert(name, Path(artifact)), file, compress_to_fp16=False)


if __name__ == "__main__":
    main(sys.argv[1:])
