"""Programs that are no classifiers: tensors and pictures in, tensors out."""

import json

import numpy as np
import pytest
import torch
from pierhead_server import eager
from pierhead_server.artifact import Sample, read_artifact
from pierhead_server.config import ImageInput, Preprocessing, TensorInput
from pierhead_server.eager import make_program
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.images import read_image
from pierhead_server.messages import Hello, Refusal
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.tensors import Signature, TensorSpec
from pierhead_server.worker import warm_up

from tests.unit.server.calls import CONTRACT, ask, in_base64, instances, predict
from tests.unit.server.pictures import encode, picture

VECTOR = TensorInput(name="x", shape=(3,))
FREE = TensorInput(name="x", shape=(-1,))
NUMBER = TensorInput(name="b")
SMALL = Preprocessing(resize=16, crop=16)


class Function(torch.nn.Module):
    """A program that is one function of its inputs."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def make(function, *inputs, outputs=None):
    return make_program(Function(function), inputs, outputs, max_image_pixels=10**6)


def test_one_output_of_one_number_is_a_number():
    model = make(lambda x: x.sum(dim=1), VECTOR)
    assert predict(model, instances([1, 2, 3], [4, 5.5, 6])) == [[6.0, 15.5]]


def test_one_output_of_many_numbers_is_a_list():
    model = make(lambda x: torch.stack([x, 2 * x], dim=1), VECTOR)
    assert predict(model, instances([1, 2, 3])) == [[[[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]]]


def test_several_outputs_are_an_object_by_their_names():
    model = make(lambda x: (x.sum(dim=1), x.argmax(dim=1)), VECTOR, outputs=["sum", "best"])
    assert predict(model, instances([1, 2, 3])) == [[{"sum": 6.0, "best": 2}]]


def test_outputs_without_names_are_numbered():
    model = make(lambda x: [x.sum(dim=1), x], VECTOR)
    assert predict(model, instances([1, 2, 3])) == [[{"output_0": 6.0, "output_1": [1.0, 2.0, 3.0]}]]
    assert [spec.name for spec in make(lambda x: x, VECTOR).signature.outputs] == ["output"]


def test_outputs_of_a_dict_have_its_names():
    model = make(lambda x: {"sum": x.sum(dim=1), "positive": x > 0}, VECTOR)
    assert predict(model, instances([1, -2, 3])) == [[{"sum": 2.0, "positive": [True, False, True]}]]


def test_input_may_be_a_number():
    model = make(lambda x: x * 2, TensorInput(name="x", dtype="int64"))
    assert predict(model, instances(1, 2.0, -3)) == [[2, 4, -6]]


def test_one_input_may_be_given_with_and_without_its_name():
    model = make(lambda x: x.sum(dim=1), VECTOR)
    assert predict(model, instances([1, 2, 3], {"x": [4, 5, 6]})) == [[6.0, 15.0]]


def test_several_inputs_come_by_their_names():
    model = make(lambda a, b: a * b[:, None], TensorInput(name="a", shape=(2,)), TensorInput(name="b", dtype="int64"))
    assert predict(model, instances({"b": 3, "a": [1, 2]}, {"a": [0.5, 1], "b": 2})) == [[[3.0, 6.0], [1.0, 2.0]]]


def test_nan_and_infinity_reach_the_program():
    model = make(lambda x: x.isnan().float() + 2 * x.isinf().float(), VECTOR)
    assert predict(model, b'{"instances": [[NaN, 0, -Infinity]]}') == [[[1.0, 0.0, 2.0]]]


def test_infinite_and_missing_outputs_are_null():
    model = make(lambda x: torch.log(x), VECTOR)
    assert predict(model, instances([0, -1, 1])) == [[[None, None, 0.0]]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_each_dtype_arrives_as_such(dtype):
    seen = []

    def remember(x):
        seen.append(x.dtype)
        return x

    model = make(remember, TensorInput(name="x", dtype=dtype, shape=(2,)))
    given = [True, False] if dtype == "bool" else [1, 0]
    assert predict(model, instances(given)) == [[given]]
    assert set(seen) == {getattr(torch, dtype)}
    assert model.signature.outputs == (TensorSpec("output", dtype, (2,)),)


def test_bfloat16_outputs_are_floats():
    assert predict(make(lambda x: x.bfloat16(), VECTOR), instances([1, 2, 3.5])) == [[[1.0, 2.0, 3.5]]]


def test_rows_of_other_sizes_are_computed_by_size():
    batches = []

    def total(x):
        batches.append(tuple(x.shape))
        return x.sum(dim=1)

    model = make(total, FREE)
    batches.clear()
    assert predict(model, instances([1], [1, 2], [3]), instances([4, 5], [6])) == [[1.0, 3.0, 3.0], [9.0, 6.0]]
    assert sorted(batches) == [(2, 2), (3, 1)]


def test_picture_beside_a_tensor():
    image = ImageInput(name="image", type="image", preprocessing=SMALL)
    model = make(lambda image, scale: image.mean(dim=(2, 3)) * scale[:, None], image, TensorInput(name="scale"))
    data = encode(picture())
    pixels = read_image(data, SMALL, max_pixels=10**6).transpose(2, 0, 1) / 255
    normalised = (pixels - np.reshape(SMALL.mean, (3, 1, 1))) / np.reshape(SMALL.std, (3, 1, 1))
    forms = [
        {"b64": in_base64(data)},
        {"content": in_base64(data), "mimeType": "image/png"},
        np.asarray(picture()).tolist(),
    ]
    (rows,) = predict(model, instances(*({"image": form, "scale": 2} for form in forms)))
    np.testing.assert_allclose(rows, [2 * normalised.mean(axis=(1, 2))] * 3, rtol=1e-4, atol=1e-5)
    assert model.signature.inputs == (TensorSpec("image", "bytes", ()), TensorSpec("scale", "float32", ()))


def test_one_picture_may_come_by_itself():
    model = make(lambda image: image.mean(dim=(1, 2, 3)), ImageInput(name="image", type="image", preprocessing=SMALL))
    data = {"b64": in_base64(encode(picture()))}
    (rows,) = predict(model, instances(data, {"image": data}, {"content": data["b64"]}))
    assert rows[0] == rows[1] == rows[2]


TWO = (TensorInput(name="a", shape=(2,)), ImageInput(name="image", type="image", preprocessing=SMALL))
NO_PICTURE = {"b64": in_base64(b"none")}


@pytest.mark.parametrize(
    ("inputs", "instance", "message"),
    [
        ((VECTOR,), [1, 2], "instances[1]: expected shape [3], got [2]"),
        ((VECTOR,), {"x": [1, 2]}, "instances[1].x: expected shape [3], got [2]"),
        ((VECTOR,), [[1, 2, 3]], "instances[1]: expected shape [3], got [1, 3]"),
        ((VECTOR,), 1, "instances[1]: expected shape [3], got a single number"),
        ((VECTOR,), "1,2,3", "instances[1]: must be numbers of shape [3], not a string"),
        ((VECTOR,), [1, None, 3], "instances[1][1]: must be a number, not null"),
        ((VECTOR,), {"y": [1, 2, 3]}, "instances[1]: must be numbers of shape [3], not an object"),
        ((VECTOR,), {"x": [1, [2], 3]}, "instances[1].x[1]: ragged: must be a number, not a list"),
        ((FREE,), [], "instances[1]: expected shape [any], got [0]"),
        (TWO, [1, 2], "instances[1]: must be an object with a, image"),
        (TWO, {"a": [1, 2]}, "instances[1].image: missing: the model needs it"),
        (TWO, {"a": [1, 2], "imgae": 1}, "instances[1].image: missing: the model needs it, and does not know imgae"),
        (TWO, {"a": [1, 2], "image": NO_PICTURE}, "instances[1].image: not a picture: send one of JPEG, PNG, GIF, B"),
        (TWO, {"a": [1, 2], "image": [[[1, 2]]]}, "instances[1].image: expected shape [any, any, 3], got [1, 1, 2]"),
        (TWO, {"a": [1, 2], "image": "x"}, "instances[1].image: must be a picture, not a string: is it base64? Send"),
    ],
)
def test_mismatch_says_where_and_what_was_expected(inputs, instance, message):
    model = make(lambda *given: given[0].sum(dim=1), *inputs)
    good = {"a": [1, 2], "image": np.zeros((2, 2, 3), dtype=int).tolist()} if inputs == TWO else [1, 2, 3]
    wrong, right = predict(model, instances(good, instance), instances(good))
    assert wrong.startswith(message)
    assert isinstance(right, list)


def test_other_arguments_are_refused():
    (message,) = predict(make(lambda x: x, VECTOR), instances([1, 2, 3], parameters={"k": 1}))
    assert message.startswith("parameters: unknown: ")


@pytest.mark.parametrize("arguments", [{"parameters": None}, {"parameters": {}, "signature_name": "serving_default"}])
def test_arguments_that_mean_nothing_are_taken(arguments):
    assert predict(make(lambda x: x.sum(dim=1), VECTOR), instances([1, 2, 3], **arguments)) == [[6.0]]


def test_what_a_client_keeps_beside_the_inputs_is_ignored_and_its_key_comes_back():
    one = make(lambda x: x.sum(dim=1), VECTOR)
    assert predict(one, instances({"x": [1, 2, 3], "key": "a", "y": None})) == [[6.0]]
    several = make(lambda x: (x.sum(dim=1), x.argmax(dim=1)), VECTOR, outputs=["sum", "best"])
    rows = instances({"x": [1, 2, 3], "key": "a"}, {"x": [1, 2, 3], "tag": 1})
    assert predict(several, rows) == [[{"key": "a", "sum": 6.0, "best": 2}, {"sum": 6.0, "best": 2}]]
    own = make(lambda x, key: {"key": key + x[:, 0]}, VECTOR, TensorInput(name="key"))
    assert predict(own, instances({"x": [1, 2, 3], "key": 1})) == [[2.0]]


def test_infinite_and_missing_outputs_are_counted():
    model = make(lambda x: torch.log(x), VECTOR)
    (reply,) = ask(model, instances([0, -1, 1], [0, 1, 1]))
    assert reply.non_finite == 3


@pytest.mark.parametrize(
    ("raised", "code"),
    [(IndexError("index out of range in self"), 400), (AssertionError("x > 9"), 400), (AttributeError("weight"), 500)],
)
def test_what_a_program_raises_is_its_own_or_the_callers(raised, code):
    def refuse(x):
        if (x > 9).any():
            raise raised
        return x

    good, bad = ask(make(refuse, VECTOR), instances([1, 2, 3]), instances([10, 2, 3]))
    assert (good.code, bad.code) == (200, code)
    assert json.loads(bad.body)["error"]["message"].startswith(
        f"instances[0]: the model raised {type(raised).__name__}"
    )


def test_outputs_that_change_with_the_values_are_the_programs_failure():
    model = make(lambda x: x if (x < 9).all() else x.sum(), VECTOR)
    good, bad = ask(model, instances([1, 2, 3]), instances([10, 2, 3]))
    assert (good.code, bad.code) == (200, 500)
    assert b"output output has shape () for a batch of 1" in bad.body


def test_program_that_raises_on_a_row_answers_the_others():
    def refuse(x):
        if (x > 9).any():
            raise ValueError("more than 9")
        return x.sum(dim=1)

    answers = predict(
        make(refuse, VECTOR), instances([1, 2, 3]), instances([1, 1, 1], [10, 0, 0]), instances([0, 0, 1])
    )
    assert answers == [[6.0], "instances[1]: the model raised ValueError: more than 9", [1.0]]


def test_open_inference_protocol_gives_columns():
    model = make(lambda a, b: {"sum": a.sum(dim=1) + b, "same": a}, TensorInput(name="a", shape=(2,)), NUMBER)
    inputs = [
        {"name": "b", "datatype": "FP32", "shape": [3], "data": [10, 20, 30]},
        {"name": "a", "datatype": "FP32", "shape": [3, 2], "data": [[1, 2], [3, 4], [5, 6]]},
    ]
    (reply,) = ask(model, {"inputs": inputs}, dialect="oip")
    assert {output["name"]: (output["shape"], output["data"]) for output in json.loads(reply.body)["outputs"]} == {
        "sum": ([3], [13.0, 27.0, 41.0]),
        "same": ([3, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    }


def test_signature_is_what_the_program_was_seen_to_give():
    model = make(lambda x: (x.sum(dim=1), x.unsqueeze(2).expand(-1, -1, 4).int()), VECTOR, outputs=["sum", "grid"])
    assert model.signature == Signature(
        inputs=(TensorSpec("x", "float32", (3,)),),
        outputs=(TensorSpec("sum", "float32", ()), TensorSpec("grid", "int32", (3, 4))),
    )


def test_outputs_of_an_input_of_any_size_have_any_size():
    signature = make(lambda x: (x, x.sum(dim=1)), FREE).signature
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(-1,), (-1,), ()]


@pytest.mark.parametrize(
    ("function", "outputs", "message"),
    [
        (
            lambda x: x.reshape(1, 3),
            None,
            "the program refuses x [2, 3]: export it with a dynamic batch dimension: shape '[1, 3]' is invalid for",
        ),
        (lambda x: x @ x, None, "the program refuses x [1, 3]: "),
        (lambda x: x.sum(), None, "the program refuses x [1, 3]: output output has shape () for a batch of 1"),
        (lambda x: x.T, None, "the program refuses x [1, 3]: output output has shape (3, 1) for a batch of 1"),
        (lambda x: (x, 1), None, "the program refuses x [1, 3]: output output_1 is a int, not a tensor"),
        (lambda x: x, ["a", "b"], "the program refuses x [1, 3]: outputs: 2 names, but the program gives 1"),
        (lambda x: (x, x), ["a"], "the program refuses x [1, 3]: outputs: 1 names, but the program gives 2"),
    ],
)
def test_program_that_does_not_fit_is_refused(function, outputs, message):
    with pytest.raises(ArtifactInvalidError) as caught:
        make(function, VECTOR, outputs=outputs)
    assert str(caught.value).startswith(message)


IMAGE = ImageInput(name="image", type="image", preprocessing=SMALL)


@pytest.mark.parametrize(
    "inputs",
    [
        (VECTOR,),
        (FREE,),
        (NUMBER,),
        (IMAGE,),
        TWO,
        (TensorInput(name="b64", shape=(2,)),),
        (TensorInput(name="flag", dtype="bool"), TensorInput(name="grid", dtype="int8", shape=(2, -1))),
    ],
)
def test_probe_is_answered_with_zeros_of_the_declared_inputs(inputs):
    seen = []

    def remember(*given):
        seen.append(given)
        return given[0].float().flatten(1).sum(dim=1) if given[0].ndim > 1 else given[0].float()

    model = make(remember, *inputs)
    seen.clear()
    assert warm_up(model, CONTRACT) == Hello("quick", 1)
    (reply,) = ask(model, b"", dialect="probe")
    assert len(json.loads(reply.body)["predictions"]) == 1
    assert len(seen) == 2
    for tensor, entry in zip(seen[0], inputs, strict=True):
        assert isinstance(entry, ImageInput) or not tensor.any()


def test_program_whose_answer_cannot_be_written_is_refused():
    first = warm_up(make(lambda x: torch.complex(x, x), VECTOR), CONTRACT)
    cause = "the model's answer holds a value of type complex, which JSON does not know"
    assert first == Refusal("ArtifactInvalid", f"the model cannot answer a synthetic instance of zeros: {cause}")


def test_own_sample_is_answered_instead_of_zeros():
    sample = Sample(b'{"instances": [[1, 2, 3]]}', "warmup.json")
    model = make_program(Function(lambda x: x.sum(dim=1)), [VECTOR], None, max_image_pixels=1, sample=sample)
    (reply,) = ask(model, b"", dialect="probe")
    assert json.loads(reply.body) == {"predictions": [6.0]}


class Scores(torch.nn.Module):
    """Two inputs, two outputs."""

    def forward(self, vector: torch.Tensor, scale: torch.Tensor):
        return {"sum": vector.sum(dim=1) * scale, "scaled": vector * scale.unsqueeze(1)}


YAML = """\
inputs:
  - {name: vector, shape: [-1]}
  - {name: scale}
"""


def write_exported(folder):
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic}, {0: dynamic})
    program = torch.export.export(Scores(), (torch.zeros(2, 3), torch.zeros(2)), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    (folder / "model.yaml").write_text(f"format: torch.export\nprogram: model.pt2\n{YAML}")


def write_torchscript(folder):
    torch.jit.script(Scores()).save(folder / "model.pt")
    (folder / "model.yaml").write_text(f"format: torchscript\nprogram: model.pt\n{YAML}")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("write", [write_exported, write_torchscript])
def test_saved_program_answers(write, tmp_path):
    write(tmp_path)
    loaded = load_model(read_artifact(tmp_path), LoadOptions(10**6, compiled_dir=tmp_path / "cache"))
    assert loaded.order.entry.parent == tmp_path / "cache"
    assert (loaded.model.form, loaded.model.batch) == ("quick", 1)
    answers = predict(
        loaded.model,
        instances({"vector": [1, 2], "scale": 2}, {"vector": [1, 2, 3], "scale": 0.5}),
        instances({"vector": [5], "scale": 1}),
    )
    assert answers == [
        [{"sum": 6.0, "scaled": [2.0, 4.0]}, {"sum": 3.0, "scaled": [0.5, 1.0, 1.5]}],
        [{"sum": 5.0, "scaled": [5.0]}],
    ]


# Taking a program to a GPU


def test_program_on_a_gpu_is_computed_in_batches():
    model = make(lambda x: x * 2, VECTOR)
    model.move(torch.device("cpu"))  # in a GPU's place
    assert (model.form, model.batch) == ("cuda", 32)
    assert predict(model, instances([1, 2, 3])) == [[[2.0, 4.0, 6.0]]]


@pytest.mark.parametrize("broken", [lambda x: x.cpu() + torch.ones(3), lambda x: x[:, :2], None])
def test_program_that_a_gpu_fails_goes_on_as_before(broken, monkeypatch):
    """The second gives something else there; `meta` refuses to mix devices as a GPU does, and gives no numbers."""
    model = make(lambda x: x + torch.ones(3), VECTOR)
    device = torch.device("meta")
    if broken:
        monkeypatch.setattr(eager, "copy_to", lambda *_: Function(broken))
        device = torch.device("cpu") if broken(torch.ones(1, 3)).shape == (1, 2) else device
    with pytest.raises((ArtifactInvalidError, RuntimeError)):
        model.move(device)
    assert (model.form, model.batch) == ("quick", 1)
    assert predict(model, instances([1, 2, 3])) == [[[2.0, 3.0, 4.0]]]
