"""What goes with every instance, and what the model's processes make of a call."""

import msgspec
import pytest
from pierhead_server.batch.arguments import make_arguments
from pierhead_server.config import parse_config
from pierhead_server.errors import InstanceError, SettingsInvalidError
from pierhead_server.messages import Call
from pierhead_server.protocol import Limits, parse

PREDICTOR = parse_config(b"format: predictor")
CLASSIFIER = parse_config(b"{format: torch.export, program: a.pt2, labels: [ant, bee]}")
PROGRAM = parse_config(b"{format: torch.export, program: a.pt2, inputs: [{name: x}]}")


@pytest.mark.parametrize(
    ("config", "parameters", "arguments"),
    [
        (PREDICTOR, {"confidenceThreshold": 0.5, "own": [1]}, {"confidenceThreshold": 0.5, "own": [1]}),
        (CLASSIFIER, {"confidenceThreshold": 0.5}, {"parameters": {"confidenceThreshold": 0.5}}),
        (CLASSIFIER, {}, {"parameters": {}}),
        (PROGRAM, {}, {}),
    ],
)
def test_arguments_suit_the_model(config, parameters, arguments):
    assert make_arguments(config, parameters) == arguments


@pytest.mark.parametrize(
    ("config", "parameters", "message"),
    [
        (CLASSIFIER, {"maxPrediction": 1}, "^modelParameters: maxPrediction: unknown: did you mean maxPredictions"),
        (CLASSIFIER, {"maxPredictions": 0}, "^modelParameters: maxPredictions: must be a whole number"),
        (PROGRAM, {"maxPredictions": 1}, "^modelParameters: maxPredictions: this model takes none"),
    ],
)
def test_parameters_that_the_model_does_not_take_are_told_at_once(config, parameters, message):
    with pytest.raises(SettingsInvalidError, match=message):
        make_arguments(config, parameters)


def make_call(instance, **arguments):
    return Call("batch", msgspec.msgpack.encode(arguments | {"instances": [instance]}))


def test_call_of_a_batch_worker_holds_bytes():
    request = parse(make_call({"content": b"\xff", "more": [{"b64": "aGk="}]}, parameters={"a": 1}), Limits(1))
    assert request.instances == [{"content": b"\xff", "more": [b"hi"]}]
    assert (request.arguments, request.dialect) == ({"parameters": {"a": 1}}, "batch")


def test_instance_of_a_batch_worker_may_be_wrong():
    with pytest.raises(InstanceError, match=r"^instances\[0\].x.b64: not valid base64"):
        parse(make_call({"x": {"b64": "%"}}), Limits(1))
