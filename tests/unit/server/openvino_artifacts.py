"""Artifacts that OpenVINO's own tools write. No torch."""

from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops

from tests.unit.server.pictures import LABELS, SIDE

CLASSIFIER_YAML = f"""\
format: openvino
program: model.xml
labels: [{", ".join(LABELS)}]
preprocessing: {{resize: {SIDE + 8}, crop: {SIDE}}}
"""


def make_classifier(batch=-1, classes=5, side=SIDE):
    """Pictures through a convolution; with a batch of 1 as many of OpenVINO's models are made."""
    random = np.random.default_rng(0)
    pictures = ops.parameter([batch, 3, side, side], np.float32, name="pictures")
    weights = ops.constant(random.normal(size=(classes, 3, 5, 5)).astype(np.float32))
    features = ops.relu(ops.convolution(pictures, weights, [2, 2], [0, 0], [0, 0], [1, 1]))
    logits = ops.reduce_mean(features, ops.constant([2, 3]), keep_dims=False)
    return openvino.Model([logits], [pictures], "classifier")


def compute_classifier(pictures, preprocessing):
    """The classifier's confidences of pixels, uint8 [n, side, side, 3], by numpy and one inference in float32."""
    scaled = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (np.asarray(value, np.float32).reshape(3, 1, 1) for value in (preprocessing.mean, preprocessing.std))
    network = openvino.Core().compile_model(make_classifier(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = network([(scaled - mean) / std])[0]
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def write_artifact(folder: Path, network, text: str = CLASSIFIER_YAML) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)
    (folder / "model.yaml").write_text(text)
    return folder
