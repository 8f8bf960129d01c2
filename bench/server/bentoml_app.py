"""BentoML serving the same OpenVINO network. Run as a service of BentoML's, in an environment of its own.

`bentoml serve bench.server.bentoml_app:Classifier`, with a PeerPlan as JSON in BENCH_PEER_PLAN. It decodes as the raw
loop does. A method of BentoML's that may be batched takes one list and gives one: then the answer is a list, too, and
how many classes are wanted is not heard.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import bentoml
import msgspec
import torch

from bench.server.openvino_network import read_openvino
from bench.server.peers import PATH, PLAN_VARIABLE, PeerPlan
from bench.server.pictures import MAX_PREDICTIONS
from bench.server.preprocessing import preprocess

_PLAN = msgspec.json.decode(os.environ[PLAN_VARIABLE], type=PeerPlan)


@bentoml.service(
    workers=_PLAN.workers,
    threads=1,  # requests of a worker that are computed at once: its core has no time for another
    # What costs time and is no part of a prediction.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    monitoring={"enabled": False},
)
class Classifier:
    """Requests and answers of the shape that Vertex AI gives them, one image a request."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        assert _PLAN.network
        self.network = read_openvino(Path(_PLAN.network))
        self.labels = (Path(_PLAN.artifact) / "labels.txt").read_text(encoding="utf-8").splitlines()

    if _PLAN.batch == 1:

        @bentoml.api(route=PATH)  # type: ignore[untyped-decorator]
        def predict(self, instances: list[dict[str, str]], parameters: dict[str, int]) -> dict[str, Any]:
            """One request."""
            return {"predictions": self.rank(instances, parameters["maxPredictions"])}

    else:

        @bentoml.api(route=PATH, batchable=True, max_batch_size=_PLAN.batch)  # type: ignore[untyped-decorator]
        def predict_batch(self, instances: list[dict[str, str]]) -> list[dict[str, Any]]:
            """The requests that BentoML puts together."""
            return self.rank(instances, MAX_PREDICTIONS)

    def rank(self, instances: list[dict[str, str]], most: int) -> list[dict[str, Any]]:
        """The best classes of each image."""
        images = [preprocess(base64.b64decode(instance["content"])) for instance in instances]
        whole = images[0] if len(images) == 1 else torch.cat(images).contiguous(memory_format=torch.channels_last)
        best = self.network(whole).topk(most)
        return [
            {
                "ids": [str(index) for index in ids],
                "displayNames": [self.labels[index] for index in ids],
                "confidences": confidences,
            }
            for ids, confidences in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
