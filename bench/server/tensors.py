"""A request of KServe's V2 protocol, as Triton and our server take it: JSON, then the JPEG as it is. No torch."""

from __future__ import annotations

import json

from bench.server.pictures import MAX_PREDICTIONS

MODEL = "classifier"
INPUT, OUTPUT = "image", "confidences"  # as our server calls those of an image classifier
PATH = f"/v2/models/{MODEL}/infer"
HEAD_LENGTH = "Inference-Header-Content-Length"  # the header that says how much of a body is JSON


def make_head(jpeg: bytes) -> bytes:
    """The JSON: what the tensor is, and that the best classes are wanted, not all confidences."""
    given = {"name": INPUT, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + len(jpeg)}}
    wanted = {"name": OUTPUT, "parameters": {"classification": MAX_PREDICTIONS}}
    return json.dumps({"inputs": [given], "outputs": [wanted]}).encode()


def make_tensor(jpeg: bytes) -> bytes:
    """The tensor of one text: its length, its bytes."""
    return len(jpeg).to_bytes(4, "little") + jpeg
