"""Custom prediction routines: what they are given, what they may return, and whose fault it is when they break."""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pierhead_server import predictor
from pierhead_server.artifact import Sample
from pierhead_server.errors import ArtifactInvalidError, InternalError, InvalidArgumentError, QueueFullError
from pierhead_server.messages import Call, Hello
from pierhead_server.predictor import PredictorModel, load_predictor
from pierhead_server.protocol import Limits, Request, ServedModel, parse, shape
from pierhead_server.worker import warm_up
from sklearn.datasets import load_breast_cancer
from starlette.exceptions import HTTPException

from tests.unit.server.calls import CONTRACT, ask
from tests.unit.server.calls import instances as instances_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "predictors"
GOOD = """
class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls()

    def predict(self, instances, **kwargs):
        return [[type(instance).__name__, kwargs] for instance in instances]
"""


@pytest.fixture(autouse=True)
def own_imports(monkeypatch):
    """The imports of the tests' predictors are forgotten after each."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "/pytest-" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(folder, text=GOOD):
    (folder / "predictor.py").write_text(text)
    return load_predictor(folder)


def predict(model, instances, **arguments):
    return model.predict(Request(instances, arguments))


def returning(value):
    """A model whose routine returns this."""

    class Routine:
        def predict(self, instances, **kwargs):
            return value

    return PredictorModel(Routine())


def test_routine_gets_instances_and_all_other_keys(tmp_path):
    model = load(tmp_path)
    body = b'{"instances": [1, "a", {"b64": "YQ=="}, {"x": NaN}], "parameters": {"k": 1}, "probabilities": true}'
    request = parse(Call("aiplatform", body), Limits(10), model.signature)
    rows = model.predict(request).predictions()
    assert [kind for kind, _ in rows] == ["int", "str", "bytes", "dict"]
    assert rows[0][1] == {"parameters": {"k": 1}, "probabilities": True}


def test_folder_is_given_and_its_modules_are_found(tmp_path):
    (tmp_path / "beside.py").write_text("WORD = 'beside'")
    (tmp_path / "later.py").write_text("WORD = 'later'")
    text = """
import beside
class Predictor:
    def from_path(model_dir):
        made = Predictor()
        made.folder = model_dir
        return made
    def predict(self, instances):
        import later
        return [[self.folder, beside.WORD, later.WORD]]
"""
    assert predict(load(tmp_path, text), [1]).predictions() == [[str(tmp_path), "beside", "later"]]
    # Bytecode would change the artifact's digest.
    assert {path.name for path in tmp_path.iterdir()} == {"predictor.py", "beside.py", "later.py"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "predictor.py: has no class Predictor"),
        ("Predictor = 1", "predictor.py: has no class Predictor"),
        ("class Predictor: pass", "predictor.py: class Predictor has no classmethod from_path(cls, model_dir)"),
        (
            GOOD.replace("cls()", "None"),
            "predictor.py: Predictor.from_path gave a NoneType, which has no method predict(self, instances, **kwargs)",
        ),
        (
            GOOD.replace("predict(", "classify("),
            "predictor.py: Predictor.from_path gave a Predictor, which has no meth",
        ),
        (
            GOOD.replace("cls()", "1 / 0"),
            "predictor.py: Predictor.from_path raised ZeroDivisionError: division by zero",
        ),
        (
            GOOD.replace("cls, model_dir", "cls"),
            "predictor.py: Predictor.from_path raised TypeError: Predictor.from_pa",
        ),
        ("import no_such_module", "predictor.py: importing it raised ModuleNotFoundError: No module named 'no_such_mo"),
        ("import sys; sys.exit('no')", "predictor.py: importing it raised SystemExit: no"),
        ("def broken(", "predictor.py: importing it raised SyntaxError: '(' was never closed (predictor.py, line 1)"),
        ("raise ValueError('x\\n' * 1000)", "predictor.py: importing it raised ValueError: x x x"),
    ],
)
def test_what_is_missing_or_raises_is_told(tmp_path, text, message, caplog):
    with pytest.raises(ArtifactInvalidError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400
    assert (" raised " in message) == ("Traceback" in caplog.text)


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ([1, 2], np.array([1, 2])),
        ([1.5, 2], np.array([1.5, 2.0])),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([True, False], np.array([True, False])),
        ((1, 2), np.array([1, 2])),
        (np.array([1, 2], dtype=np.float32), np.array([1, 2], dtype=np.float32)),
        (np.array([[1], [2]], dtype=np.uint8), np.array([[1], [2]], dtype=np.uint8)),
        ([np.float32(1), np.float32(2)], np.array([1.0, 2.0])),
        ([2**63, 2**63], np.array([2**63, 2**63], dtype=np.uint64)),
        (torch.tensor([1.0, 2.0], requires_grad=True), np.array([1.0, 2.0])),
        (torch.tensor([[1], [2]], dtype=torch.bfloat16), np.array([[1.0], [2.0]])),
        (["a", b"b"], np.array(["a", b"b"], dtype=object)),
        (np.array(["a", "b"]), np.array(["a", "b"], dtype=object)),
        ([[1], [2, 3]], np.array([b"[1]", b"[2,3]"], dtype=object)),
        ([{"a": 1}, None], np.array([b'{"a":1}', b"null"], dtype=object)),
        ([["a", 1], ["b", 2]], np.array([b'["a",1]', b'["b",2]'], dtype=object)),
        ([{"a": np.ones(2)}, {"a": b"x"}], np.array([b'{"a":[1.0,1.0]}', b'{"a":{"b64":"eA=="}}'], dtype=object)),
    ],
)
def test_returned_lists_become_json_and_tensors(given, output):
    result = predict(returning(given), [0, 0])
    (array,) = result.tensors().values()
    np.testing.assert_array_equal(array, output)
    assert array.dtype == output.dtype
    assert len(result.predictions()) == 2
    assert shape(Request([0, 0], {}), result, ServedModel("", "", "", "")).code == 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "the predictor returned a NoneType, not a list of predictions"),
        ({"a": 1, "b": 2}, "the predictor returned a dict, not a list of predictions"),
        ("ab", "the predictor returned a str, not a list of predictions"),
        ({1, 2}, "the predictor returned a set, not a list of predictions"),
        (np.float64(1), "the predictor returned a float64, not a list of predictions"),
        (np.array(1), "the predictor returned a ndarray, not a list of predictions"),
        ((n for n in (1, 2)), "the predictor returned a generator, not a list of predictions"),
        (torch.tensor(1), "the predictor returned a Tensor, not a list of predictions"),
        ([1], "the predictor returned 1 predictions for 2 instances"),
        (np.zeros((3, 2)), "the predictor returned 3 predictions for 2 instances"),
    ],
)
def test_returning_no_list_of_the_length_is_the_models_fault(given, message):
    with pytest.raises(InternalError) as caught:
        predict(returning(given), [0, 0])
    assert str(caught.value) == message


def test_each_request_has_its_own_outcome(tmp_path, caplog):
    text = GOOD.replace("return [[", "return [1 / instance for instance in instances] if 'plain' in kwargs else [[")
    model = load(tmp_path, text)
    requests = [
        Request([4], {"plain": True}),
        Request([0], {"plain": True}),
        QueueFullError("full"),
        Request([1, "x"], {"plain": True}),
        Request([2], {"instances": 1}),
    ]
    computed = model.compute([each if isinstance(each, QueueFullError) else model.prepare(each) for each in requests])
    outcomes = [each.outcome for each in computed]
    assert outcomes[0].predictions() == [0.25]
    assert outcomes[2] is requests[2]
    assert [str(outcomes[index]) for index in (1, 3, 4)] == [
        "instances[0]: the predictor raised ZeroDivisionError: division by zero",
        "instances: the predictor raised TypeError: unsupported operand type(s) for /: 'int' and 'str'",
        "instances: unknown: did you mean instances?",
    ]
    assert [outcomes[index].code for index in (1, 3, 4)] == [500, 500, 400]
    assert [each.instances for each in computed] == [1, 1, 0, 2, 1]
    assert "Traceback" in caplog.text


class InvalidInput(ValueError):  # noqa: N818 - KServe's name
    """As KServe's, whose message is no argument."""

    def __str__(self):
        return "no such flower"


class Mute(Exception):  # noqa: N818 - it is a stranger's
    """It cannot even say what it is."""

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        # Deliberate, for input that is wrong
        (
            ValueError("age: must be 0 to 150"),
            400,
            "instances[0]: the predictor raised ValueError: age: must be 0 to 150",
        ),
        (InvalidInput(), 400, "instances[0]: the predictor raised InvalidInput: no such flower"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), 400, "instances[0]: the predictor raised UnicodeDecodeError: "),
        (HTTPException(422, "age: must be 0 to 150"), 400, "age: must be 0 to 150"),
        (HTTPException(400), 400, "Bad Request"),
        (InvalidArgumentError("in our own words"), 400, "in our own words"),
        # The model's own failure: alerts and canaries look at 5xx
        (HTTPException(503, "the feature store is away"), 500, "the feature store is away"),
        (
            AttributeError("'NoneType' object has no attribute 'x'"),
            500,
            "instances[0]: the predictor raised AttributeErr",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            500,
            "instances[0]: the predictor raised OutOfMemoryError: CUDA out",
        ),
        (KeyError("age"), 500, "instances[0]: the predictor raised KeyError: 'age'"),
        (MemoryError(), 500, "instances[0]: the predictor raised MemoryError"),
        (Mute(), 500, "instances[0]: the predictor raised Mute"),
        (HTTPException(400, Mute()), 400, ""),
        (HTTPException("bad age", 400), 500, "400"),
        (SystemExit(1), 500, "instances[0]: the predictor raised SystemExit: 1"),
        (KeyboardInterrupt(), 500, "instances[0]: the predictor raised KeyboardInterrupt"),
        (
            BaseExceptionGroup("all", [GeneratorExit()]),
            500,
            "instances[0]: the predictor raised BaseExceptionGroup: all",
        ),
    ],
)
def test_routine_says_whose_error_it_is(raised, code, message):
    class Routine:
        def predict(self, instances):
            raise raised

    (reply,) = ask(PredictorModel(Routine()), instances_of(1))
    assert reply.code == code
    assert json.loads(reply.body)["error"]["message"].startswith(message)


def test_gpu_that_failed_ends_the_worker():
    class Routine:
        def predict(self, instances):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with pytest.raises(torch.AcceleratorError):
        PredictorModel(Routine()).compute([Request([1], {})])


class Plain:
    def predict(self, instances):
        return [{} for _ in instances]


class Chosen:
    def predict(self, instances, *, k, parameters=0):
        return [{"k": k, "parameters": parameters} for _ in instances]


class Everything:
    def predict(self, rows, **kwargs):
        return [kwargs for _ in rows]


class Rest:
    def predict(self, *args):
        return [{} for _ in args[0]]


class Wild:
    def predict(self, *args, **kwargs):
        return [kwargs for _ in args[0]]


@pytest.mark.parametrize(
    ("routine", "arguments", "prediction"),
    [
        (Plain, {"parameters": None}, {}),
        (Plain, {"parameters": {}, "signature_name": "serving_default"}, {}),
        (Chosen, {"k": 1, "parameters": None}, {"k": 1, "parameters": None}),
        (Chosen, {"k": 1, "signature_name": "x"}, {"k": 1, "parameters": 0}),
        (Everything, {"parameters": {}, "signature_name": "x"}, {"parameters": {}, "signature_name": "x"}),
        (Wild, {"parameters": {}, "x": 1}, {"parameters": {}, "x": 1}),
        # What `predict` does not take is the caller's error
        (Plain, {"parameters": {"k": 1}}, "parameters: unknown: known are instances"),
        (Rest, {"parameters": {}}, {}),
        (Rest, {"k": 1}, "k: unknown: known are instances"),
        (Plain, {"probability": True}, "probability: unknown: known are instances"),
        (Chosen, {"k": 1, "parameter": {}}, "parameter: unknown: did you mean parameters?"),
        (Chosen, {}, "k: missing: the predictor needs it"),
        (Everything, {"rows": 1}, "rows: unknown: known are instances"),
    ],
)
def test_routine_gets_the_arguments_that_it_takes(routine, arguments, prediction):
    (reply,) = ask(PredictorModel(routine()), instances_of(1, **arguments))
    said = json.loads(reply.body)
    assert reply.code == (400 if isinstance(prediction, str) else 200)
    assert (said["error"]["message"] if reply.code == 400 else said["predictions"][0]) == prediction


def test_key_is_the_routines_own_business():
    (reply,) = ask(PredictorModel(Plain()), instances_of({"key": "a"}))
    assert json.loads(reply.body)["predictions"] == [{}]


def test_numbers_that_are_none_are_counted_in_either_protocol():
    model = returning([{"a": math.nan}, {"a": math.inf, "b": None}])
    (reply,) = ask(model, instances_of(1, 2))
    assert reply.non_finite == 2
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    (reply,) = ask(model, {"inputs": [tensor]}, dialect="oip")
    assert reply.non_finite == 2
    (reply,) = ask(returning([math.nan, 1.0]), {"inputs": [tensor]}, dialect="oip")
    assert reply.non_finite == 1


def test_probe_without_a_sample_asks_the_routine_nothing():
    model = returning("would be an error")
    assert model.sample is None
    (reply,) = ask(model, b"", dialect="probe")
    assert (reply.code, reply.body) == (200, b'{"predictions":[]}')


def test_sample_is_the_artifacts(tmp_path):
    (tmp_path / "predictor.py").write_text(GOOD)
    model = load_predictor(tmp_path, Sample(b'{"instances": [{"b64": "AA=="}], "k": NaN}', "warmup.json"))
    (reply,) = ask(model, b"", dialect="probe")
    assert reply.body == b'{"predictions":[["bytes",{"k":null}]]}'
    assert warm_up(model, CONTRACT) == Hello("quick", 1)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        ("raise KeyError('age')", "instances[0]: the predictor raised KeyError: 'age'"),
        ("return 5", "the predictor returned a int, not a list of predictions"),
        ("return []", "the predictor returned 0 predictions for 1 instances"),
        ("return [object()]", "the model's answer holds a value of type object, which JSON does not know"),
    ],
)
def test_sample_that_fails_is_told_with_its_file(tmp_path, predict, message):
    (tmp_path / "predictor.py").write_text(GOOD.replace("return [[", f"{predict}\n        return [["))
    model = load_predictor(tmp_path, Sample(b'{"instances": [1]}', "warmup.json"))
    assert warm_up(model, CONTRACT).message == f"the model cannot answer warmup.json: {message}"


def test_what_is_printed_is_logged(tmp_path, caplog, capsys):
    caplog.set_level("INFO", predictor.__name__)
    text = "print('importing')\n" + GOOD.replace("return cls()", "print('loading', end=''); return cls()").replace(
        "return [[", "print('one\\ntwo'); return [["
    )
    predict(load(tmp_path, text), [1])
    assert caplog.messages == [f"printed: {line}" for line in ("importing", "loading", "one", "two")]
    assert capsys.readouterr().out == ""


@pytest.fixture
def make_example(tmp_path, capsys):
    def make(name):
        runpy.run_path(EXAMPLES / name / "train.py")["main"](tmp_path)
        assert "right for " in capsys.readouterr().out
        return load_predictor(tmp_path)

    return make


def test_sklearn_example(make_example):
    model = make_example("sklearn")
    flowers = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
    assert predict(model, flowers).predictions() == ["setosa", "virginica"]
    (probabilities,) = predict(model, flowers[:1], probabilities=True).predictions()
    assert probabilities["setosa"] > 0.9
    assert math.isclose(sum(probabilities.values()), 1)
    (computed,) = model.compute([Request([[1, 2]], {})])
    assert "X has 2 features, but LogisticRegression is expecting 4" in str(computed.outcome)


def test_missing_value_is_not_zero_in_the_xgboost_example(make_example):
    model = make_example("xgboost")
    measured = ", ".join(map(str, load_breast_cancer().data[0][:20]))
    rows = (f"[{measured}, {', '.join([missing] * 10)}]" for missing in ("NaN", "0", "null"))
    request = parse(Call("vertex", f'{{"instances": [{", ".join(rows)}]}}'.encode()), Limits(10), model.signature)
    missing, zero, null = model.predict(request).predictions().tolist()
    assert missing == null
    assert abs(missing - zero) > 0.1
