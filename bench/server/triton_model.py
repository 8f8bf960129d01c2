"""What an instance of Triton's Python backend computes. Triton imports it, in an environment of its own.

It decodes as the raw loop does, and computes by the same OpenVINO network; the best classes Triton finds itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as backend

from bench.server.openvino_network import read_openvino
from bench.server.preprocessing import preprocess
from bench.server.tensors import INPUT, OUTPUT


class TritonPythonModel:
    """One thread, one batch at a time."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Triton calls this once, with the model's configuration as JSON."""
        torch.set_num_threads(1)
        parameters = json.loads(arguments["model_config"])["parameters"]
        self.network = read_openvino(Path(parameters["network"]["string_value"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """The requests that Triton puts together, one JPEG each."""
        images = [
            preprocess(backend.get_input_tensor_by_name(request, INPUT).as_numpy().item()) for request in requests
        ]
        whole = images[0] if len(images) == 1 else torch.cat(images).contiguous(memory_format=torch.channels_last)
        confidences = self.network(whole).numpy()
        return [
            backend.InferenceResponse([backend.Tensor(OUTPUT, confidences[number : number + 1])])
            for number in range(len(images))
        ]
