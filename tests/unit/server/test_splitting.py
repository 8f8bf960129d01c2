"""Requests in pieces: what they are made of, and that their answers together are the one answer, in every dialect."""

import itertools
import json

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pierhead_server.batching import HEAVY_PIXELS
from pierhead_server.classifier import ImageClassifier
from pierhead_server.config import ImageInput, Preprocessing, TensorInput
from pierhead_server.eager import make_program
from pierhead_server.errors import InternalError
from pierhead_server.joining import join
from pierhead_server.messages import Call, Reply, Split, pack
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.splitting import PIECE_SECONDS, Pace, PieceSize, plan_pieces
from pierhead_server.worker import Contract, answer, prepare
from PIL import Image

from tests.unit.server.calls import in_base64, instances
from tests.unit.server.pictures import encode, picture

SERVED = ServedModel("photos-2", "projects/default/locations/local/models/photos", "Photos", "2")
CONTRACT = Contract(SERVED, Limits(max_instances=50))
HOW = Preprocessing(resize=8, crop=8)


class Mean:
    """A classifier that a picture's mean colour decides, whatever batch it is in."""

    form, batch = "quick", 1

    def __call__(self, rows):
        return np.stack([row.reshape(-1, 3).mean(axis=0) for row in rows]).astype(np.float32)


class Function(torch.nn.Module):
    """A program that is one function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.fixture(scope="module")
def classifier():
    return ImageClassifier(Mean(), ("red", "green", "blue"), HOW, max_image_pixels=10**8)


@pytest.fixture(scope="module")
def program():
    inputs = [ImageInput(name="image", type="image", preprocessing=HOW), TensorInput(name="age", shape=(2,))]
    function = Function(lambda image, age: {"sum": image.sum(dim=(1, 2, 3)) + age.sum(dim=1), "age": age})
    return make_program(function, inputs, None, max_image_pixels=10**8)


def pace(rows):
    """One at which so many instances are a piece."""
    known = Pace()
    known.seconds = PIECE_SECONDS / (rows + 0.5)
    return known


def ask(model, call, rows=None, contract=CONTRACT):
    """What a worker says; with `rows` at a pace of so many instances a piece."""
    (said,) = answer([call], [prepare(call, model, contract, rows and pace(rows))], model, contract)
    return said


def ask_in_pieces(model, call, rows):
    """The joined answer, or the one of the first piece that fails; and the pieces' sizes."""
    split = ask(model, call, rows)
    assert isinstance(split, Split)
    split = msgspec.msgpack.decode(pack(split)[8:], type=Split)  # as it comes to the listener
    replies = [ask(model, piece, 1) for piece in split.pieces]  # none of which is split again
    bad = next((reply for reply in replies if reply.code != 200), None)
    return bad or join(call.dialect, replies), [reply.instances for reply in replies]


DATA = [encode(picture(20 + seed, 16, seed=seed)) for seed in range(5)]
PARAMETERS = {"confidenceThreshold": 0.0, "maxPredictions": 2}


def make_oip(shape, datatype, name="image", outputs=None, data=None, **parameters):
    body = {"id": "7", "inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}
    return body | ({"outputs": outputs} if outputs else {}) | ({"parameters": parameters} if parameters else {})


def json_call(dialect, body, **more):
    return Call(dialect, json.dumps(body).encode(), **more)


VERTEX = instances(
    {"content": in_base64(DATA[0]), "mimeType": "image/png"},
    {"b64": in_base64(DATA[1])},
    {"image": {"b64": in_base64(DATA[2])}},
    np.asarray(picture(9, 9, seed=3)).tolist(),
    {"image_bytes": {"content": in_base64(DATA[4])}},
    parameters=PARAMETERS,
)
TEXTS = [in_base64(data) for data in DATA]
RANKED = [{"name": "confidences", "parameters": {"classification": 2}}]
BINARY = [{"name": "confidences", "parameters": {"binary_data": True}}]
PIXELS = np.stack([np.asarray(picture(9, 9, seed=seed)) for seed in range(5)])
CALLS = {
    "vertex": json_call("vertex", VERTEX, location="europe-west1"),
    "raw": json_call("raw", VERTEX, location="europe-west1"),
    "aiplatform": json_call("aiplatform", VERTEX),
    "kserve": json_call("kserve", VERTEX),
    "oip": json_call("oip", make_oip([5], "BYTES", data=TEXTS)),
    "oip, ranked": json_call("oip", make_oip([5], "BYTES", data=TEXTS, outputs=RANKED)),
    "oip, binary": json_call("oip", make_oip([5], "BYTES", data=TEXTS, outputs=BINARY)),
    "oip, all binary": json_call("oip", make_oip([5], "BYTES", data=TEXTS, binary_data_output=True)),
    "oip, ranked and binary": json_call(
        "oip", make_oip([5], "BYTES", data=TEXTS, outputs=RANKED, binary_data_output=True)
    ),
    "oip, pixels": json_call("oip", make_oip([5, 9, 9, 3], "UINT8", data=PIXELS.ravel().tolist())),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1])])
def test_answers_to_pieces_are_the_answer(classifier, call, rows, sizes):
    whole, (joined, seen) = ask(classifier, call), ask_in_pieces(classifier, call, rows)
    assert (joined.code, joined.body, joined.headers) == (200, whole.body, whole.headers)
    assert seen == sizes
    assert joined.instances == whole.instances == 5
    assert min(joined.prepare_seconds, joined.forward_seconds) > 0


def test_answers_of_a_program_with_several_inputs_and_outputs(program):
    values = [{"image": {"b64": in_base64(data)}, "age": [0.5, place]} for place, data in enumerate(DATA)]
    columns = [
        {"name": "image", "shape": [5], "datatype": "BYTES", "data": TEXTS},
        {"name": "age", "shape": [5, 2], "datatype": "FP32", "data": [number / 4 for number in range(10)]},
    ]
    one_binary = [{"name": "age", "parameters": {"binary_data": True}}, {"name": "sum"}]
    both_binary = {"binary_data_output": True}
    bodies = [
        ("vertex", instances(*values)),
        ("oip", {"inputs": columns}),
        ("oip", {"inputs": columns, "outputs": one_binary}),
        ("oip", {"inputs": columns, "parameters": both_binary}),
    ]
    for dialect, body in bodies:
        call = json_call(dialect, body)
        whole, (joined, sizes) = ask(program, call), ask_in_pieces(program, call, 2)
        assert sizes == [2, 2, 1]
        assert (joined.code, joined.body, joined.headers) == (200, whole.body, whole.headers)


def test_rows_that_differ_in_shape_are_no_tensors_in_pieces_either():
    free = make_program(Function(lambda x: 2 * x), [TensorInput(name="x", shape=(-1,))], None, max_image_pixels=1)
    call = json_call("vertex", instances([1], [2], [3, 4], [5, 6]))
    assert ask_in_pieces(free, call, 2)[0].body == ask(free, call).body
    data = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    two = ask(free, json_call("oip", data))
    data["inputs"][0]["shape"] = [4, 1]
    four = ask(free, json_call("oip", data))
    with pytest.raises(InternalError, match="no tensors"):
        join("oip", [two, four])


@pytest.mark.parametrize("place", range(5))
def test_wrong_instance_is_named_by_its_place_in_the_whole_request(classifier, place):
    body = json.loads(json.dumps(VERTEX))
    body["instances"][place] = {"content": in_base64(DATA[0][:-200])}  # broken, which only decoding shows
    call = json_call("vertex", body)
    joined, _ = ask_in_pieces(classifier, call, 2)
    assert (joined.code, joined.body) == (400, ask(classifier, call).body)
    assert json.loads(joined.body)["error"]["message"].startswith(f"instances[{place}].content: the picture is broken")


def test_wrong_parameters_are_refused_as_ever(classifier):
    call = json_call("kserve", VERTEX | {"parameters": {"maxPredictions": 0}})
    assert ask_in_pieces(classifier, call, 2)[0].body == ask(classifier, call).body


@pytest.mark.parametrize("number", [2**70, -(2**64)])
def test_what_no_piece_can_hold_is_not_split(number):
    free = make_program(Function(lambda x: 2 * x), [TensorInput(name="x", shape=(1,))], None, max_image_pixels=1)
    call = json_call("vertex", instances([1], [number]))
    assert isinstance(ask(free, call, 1), Reply)


@pytest.mark.parametrize("dialect", ["vertex", "oip"])
def test_what_stands_beside_instances_is_in_no_piece_or_in_one(classifier, dialect):
    long = "x" * 10_000
    beside = {"id": long} if dialect == "oip" else {"signature_name": long}
    call = msgspec.structs.replace(CALLS[dialect], body=msgspec.json.encode(json.loads(CALLS[dialect].body) | beside))
    pieces = ask(classifier, call, 2).pieces
    assert len(pieces) > 2
    assert sum(long.encode() in piece.body for piece in pieces) == (dialect == "oip")
    assert ask_in_pieces(classifier, call, 2)[0].body == ask(classifier, call).body


def test_pieces_that_would_be_much_more_than_the_request_are_not_made(classifier):
    instances = json.loads(CALLS["vertex"].body)["instances"]
    body = {"instances": instances * 8, "parameters": {"unknown": "x" * 100_000}}
    call = json_call("vertex", body)
    contract = Contract(SERVED, Limits(max_instances=50, max_body_bytes=1))
    assert ask(classifier, call, 1, contract).body == ask(classifier, call).body


@pytest.mark.parametrize("dialect", ["probe", "batch"])
def test_calls_of_the_servers_own_stay_whole(classifier, dialect):
    body = msgspec.msgpack.encode({"instances": DATA}) if dialect == "batch" else b""
    assert ask(classifier, Call(dialect, body), 1).code == 200


def test_predictors_requests_stay_whole():
    from pierhead_server.predictor import PredictorModel

    class Counting:
        def predict(self, instances):
            return [len(instances)] * len(instances)

    reply = ask(PredictorModel(Counting()), json_call("vertex", instances(1, 2, 3)), 1)
    assert json.loads(reply.body)["predictions"] == [3, 3, 3]


# Pixels


def blank(side, encoding="PNG"):
    return encode(Image.new("L", (side, side)), encoding)


def test_one_large_picture_is_a_heavy_piece(classifier):
    data = blank(2100)
    split = ask(classifier, Call("raw", data, "image/png"), 10)
    assert [split.pixels, len(split.pieces)] == [[2100**2], 1]
    assert ask(classifier, split.pieces[0], 10).body == ask(classifier, Call("raw", data, "image/png")).body


def test_strips_are_heavy_pieces_however_they_come():
    """By what scaling makes of them: millions of 100 pixels."""
    how, pixels = Preprocessing(resize=256, crop=8), np.zeros((100, 1, 3), dtype=np.uint8)
    cost = 256 * 256 * 100
    assert cost > HEAVY_PIXELS
    classifier = ImageClassifier(Mean(), ("red", "green", "blue"), how, max_image_pixels=10**7)
    inputs = [ImageInput(name="image", type="image", preprocessing=how), TensorInput(name="age", shape=(2,))]
    named = make_program(
        Function(lambda image, age: {"sum": image.sum(dim=(1, 2, 3)), "age": age}), inputs, None, max_image_pixels=10**7
    )
    single = make_program(Function(lambda image: image.sum(dim=(1, 2, 3))), inputs[:1], None, max_image_pixels=10**7)
    tensor = json_call("oip", make_oip([2, *pixels.shape], "UINT8", data=pixels.ravel().tolist() * 2))
    for model in (classifier, single):
        assert ask(model, tensor, 10).pixels == [cost, cost]
    for form in ({"b64": in_base64(encode(Image.fromarray(pixels)))}, pixels.tolist()):
        for model in (classifier, single):
            assert ask(model, json_call("vertex", instances(form, form)), 10).pixels == [cost, cost]
        assert ask(named, json_call("vertex", instances({"image": form, "age": [1, 2]})), 10).pixels == [cost]


def test_small_requests_are_not_split(classifier):
    for call in (Call("raw", DATA[0], "image/png"), CALLS["vertex"]):
        assert isinstance(ask(classifier, call, 10), Reply)


@pytest.mark.parametrize("encoding", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_too_many_pixels_together_are_refused_before_any_is_unpacked(classifier, encoding, monkeypatch):
    monkeypatch.setattr("pierhead_server.classifier.read_image", None)
    contract = Contract(SERVED, Limits(max_instances=50, max_pixels=3 * 100**2 - 1))
    body = instances(*[{"b64": in_base64(blank(100, encoding))}] * 3)
    reply = ask(classifier, json_call("vertex", body), 10, contract)
    assert reply.code == 400
    assert json.loads(reply.body)["error"]["message"] == (
        "instances: 30000 pixels together are more than 29999: send fewer or smaller pictures in a request"
    )


def test_one_picture_too_large_is_refused_before_the_others_are_unpacked(classifier, program, monkeypatch):
    monkeypatch.setattr("pierhead_server.classifier.read_image", None)
    monkeypatch.setattr("pierhead_server.program.read_image", None)
    bomb = in_base64(blank(10_100))
    body = instances({"b64": TEXTS[0]}, {"content": bomb})
    message = json.loads(ask(classifier, json_call("vertex", body), 10).body)["error"]["message"]
    assert message == "instances[1].content: more than 100000000 pixels: send a smaller picture"
    body = instances({"image": {"b64": TEXTS[0]}, "age": [1, 2]}, {"image": {"b64": bomb}, "age": [1, 2]})
    message = json.loads(ask(program, json_call("vertex", body), 10).body)["error"]["message"]
    assert message == "instances[1].image: more than 100000000 pixels: send a smaller picture"


PICTURE_SIZES = st.lists(st.integers(0, 2 * HEAVY_PIXELS), min_size=1, max_size=200)


@given(PICTURE_SIZES, st.integers(1, 20), st.floats(0, 2 * PIECE_SECONDS))
def test_pieces_are_all_instances_in_their_order_and_small(pixels, rows, seconds):
    pieces = plan_pieces(pixels, PieceSize(rows, seconds))
    assert list(itertools.chain(*(range(piece.start, piece.stop) for piece in pieces))) == list(range(len(pixels)))
    for piece in pieces:
        count = piece.stop - piece.start
        assert 1 <= count <= rows
        assert count == 1 or (sum(pixels[piece]) <= HEAVY_PIXELS and count * seconds <= PIECE_SECONDS)


# The pace


def computed(seconds, instances=4):
    return Reply(200, b"", instances=instances, forward_seconds=seconds)


def test_slow_models_get_one_instance_a_piece_and_fast_ones_many():
    slow, fast = Pace(), Pace()
    slow.learn([computed(4.0)])
    fast.learn([computed(0.004)])
    assert slow.size(1).rows == slow.size(4).rows == 1
    assert fast.size(1).rows == 1000 * PIECE_SECONDS
    assert fast.size(4).rows == 28  # whole batches
    middling = Pace()
    middling.learn([computed(0.08)])
    assert [middling.size(batch).rows for batch in (1, 4, 8)] == [1, 4, 1]  # a whole batch, if that is no eternity


def test_pace_is_the_fastest_of_lately():
    known = Pace()
    for seconds in (4.0, 0.04, 0.08):  # a slow start, and what else the machine does
        known.learn([computed(seconds), Reply(400, b""), Split([], [], b"")])
    assert known.seconds == 0.01
    for _ in range(20):
        known.learn([computed(0.08)])
    assert known.seconds == 0.02


def test_without_a_pace_a_piece_is_a_batch():
    assert (Pace().size(1).rows, Pace().size(32).rows) == (1, 32)


def test_instance_that_the_model_fails_at_is_named_by_its_place_in_the_whole_request():
    def fail(x):
        if (x == 3).any():
            raise AttributeError("a bug")
        return torch.where(x == 9, x / 0, x)

    model = make_program(Function(fail), [TensorInput(name="x", shape=(1,))], None, max_image_pixels=1)
    call = json_call("vertex", instances([0], [1], [2], [3], [4]))
    joined, _ = ask_in_pieces(model, call, 2)
    assert (joined.code, joined.body) == (500, ask(model, call).body)
    assert json.loads(joined.body)["error"]["message"] == "instances[3]: the model raised AttributeError: a bug"
    call = json_call("vertex", instances([9], [1], [2], [9], [4]))
    assert ask_in_pieces(model, call, 2)[0].non_finite == ask(model, call).non_finite == 2
