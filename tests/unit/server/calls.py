"""Calls to a model in this process, as a worker makes them."""

import base64
import json

from pierhead_server.messages import Call
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.worker import Contract, answer, prepare

from tests.unit.server.pictures import encode

CONTRACT = Contract(ServedModel("", "", "", ""), Limits(max_instances=100))


def ask(model, *bodies, dialect="raw"):
    """The replies to bodies (JSON, or bytes as they are) that are computed together."""
    calls = [Call(dialect, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies]
    return answer(calls, [prepare(call, model, CONTRACT) for call in calls], model, CONTRACT)


def predict(model, *bodies):
    """The predictions for each body; where there are none, the error's message."""
    answers = []
    for reply in ask(model, *bodies):
        said = json.loads(reply.body)
        assert (reply.code == 200) == ("predictions" in said)
        answers.append(said["predictions"] if reply.code == 200 else said["error"]["message"])
    return answers


def instances(*values, **arguments):
    """A body."""
    return {"instances": list(values)} | arguments


def in_base64(data):
    return base64.b64encode(data).decode()


def pictures(*images, **parameters):
    """A body of pictures, as Vertex AI's clients send them."""
    content = [{"content": in_base64(encode(image)), "mimeType": "image/png"} for image in images]
    return instances(*content, parameters=parameters)
