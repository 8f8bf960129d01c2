"""Several requests as one batch, each with an outcome of its own."""

from dataclasses import dataclass

import pytest
import torch
from pierhead_server.computing import compute, describe, prepare_rows
from pierhead_server.errors import ApiError, InstanceError, InternalError, InvalidArgumentError
from pierhead_server.protocol import Request
from pierhead_server.tensors import ValueTensorError


@dataclass(frozen=True)
class Rows:
    """A result that is what the model gave."""

    rows: list

    labels = None

    def predictions(self):
        return self.rows


class Doubling:
    """A model that doubles each row, and remembers the sizes of its batches."""

    def __init__(self, raises=None):
        self.batches = []
        self._raises = raises

    def __call__(self, rows):
        self.batches.append(len(rows))
        if self._raises and (error := self._raises(rows)):
            raise error
        return [2 * row for row in rows]


def read_row(instance):
    if not isinstance(instance, int):
        raise ValueTensorError("[0]", "must be a number")
    return instance


def read_parameters(arguments):
    if "bad" in arguments:
        raise InvalidArgumentError("parameters.bad: unknown")
    return arguments


def prepare(*instances, **arguments):
    try:
        return prepare_rows(Request(instances, arguments), read_row, read_parameters)
    except ApiError as error:
        return error


def shape_rows(_prepared, rows):
    return Rows(rows)


def run(requests, model, shape=shape_rows, faults=(ValueError, RuntimeError)):
    return [each.outcome for each in compute(requests, model, shape, faults)]


def test_all_rows_are_one_batch_and_each_request_gets_its_part():
    model = Doubling()
    outcomes = run([prepare(1, 2), prepare(3), prepare(4, 5, 6)], model)
    assert [outcome.predictions() for outcome in outcomes] == [[2, 4], [6], [8, 10, 12]]
    assert model.batches == [6]


def test_parameters_are_each_requests_own():
    requests = [prepare(1, k=1), prepare(2, k=2)]
    outcomes = run(requests, Doubling(), lambda prepared, rows: Rows([*rows, prepared.parameters["k"]]))
    assert [outcome.predictions() for outcome in outcomes] == [[2, 1], [4, 2]]


def test_first_bad_instance_is_named():
    error = prepare(1, "x", "y")
    assert isinstance(error, InstanceError)
    assert (str(error), error.index, error.code) == ("instances[1][0]: must be a number", 1, 400)


def test_bad_parameters_come_before_bad_instances():
    assert str(prepare("x", bad=1)) == "parameters.bad: unknown"


def test_a_request_that_is_an_error_already_harms_nobody():
    wrong = prepare("x")
    model = Doubling()
    first, error, last = run([prepare(1), wrong, prepare(2)], model)
    assert error is wrong
    assert (first.predictions(), last.predictions()) == ([2], [4])
    assert model.batches == [2]


@pytest.mark.parametrize("count", [1, 3])
def test_errors_alone_reach_no_model(count):
    model = Doubling()
    assert all(isinstance(outcome, ApiError) for outcome in run([prepare("x")] * count, model))
    assert model.batches == []


def test_no_requests_are_no_outcomes():
    assert run([], Doubling()) == []


def test_culprit_of_a_batch_is_named_and_the_others_are_answered(caplog):
    model = Doubling(lambda rows: ValueError("unlucky:\n  13") if 13 in rows else None)
    outcomes = run([prepare(1, 2), prepare(3, 13, 13), prepare(4)], model)
    assert outcomes[0].predictions() == [2, 4]
    assert outcomes[2].predictions() == [8]
    assert isinstance(outcomes[1], InstanceError)
    assert str(outcomes[1]) == "instances[1]: the model raised ValueError: unlucky: 13"
    assert outcomes[1].code == 400
    assert "the model raised on a batch of 6" in caplog.text
    assert "Traceback" in caplog.text


def test_rows_that_only_together_are_too_much_are_told_so():
    model = Doubling(lambda rows: RuntimeError("too many") if len(rows) > 2 else None)
    small, large = run([prepare(1, 2), prepare(1, 2, 3)], model)
    assert small.predictions() == [2, 4]
    assert str(large) == "the model raised RuntimeError: too many on these instances together"
    assert isinstance(large, InternalError)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("13"), 400),
        (UnicodeError("13"), 400),
        (RuntimeError("The size of tensor a (2) must match the size of tensor b (3)"), 400),
        # The model's own: alerts and canaries look at 5xx.
        (AttributeError("'NoneType' object has no attribute 'weight'"), 500),
        (TypeError("forward() got an unexpected keyword argument"), 500),
        (KeyError("x"), 500),
        (NotImplementedError("no kernel for this device"), 500),
        (RecursionError("too deep"), 500),
        (MemoryError(), 500),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), 500),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), 500),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), 500),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 500),
    ],
)
def test_failure_of_the_model_is_no_error_of_the_caller(error, code):
    def fail(rows):
        return error if 13 in rows else None

    good, bad = run([prepare(1), prepare(2, 13)], Doubling(fail))
    assert good.predictions() == [2]
    assert bad.code == code
    assert str(bad).startswith("instances[1]: the model raised ")


def test_nothing_is_the_callers_error_where_no_faults_are_known():
    (bad,) = run([prepare(13)], Doubling(lambda _: ValueError("unlucky")), faults=())
    assert (bad.code, str(bad)) == (500, "instances[0]: the model raised ValueError: unlucky")


def test_error_that_the_model_tells_in_our_words_stays_itself():
    (bad,) = run([prepare(1)], Doubling(lambda _: InternalError("two outputs instead of one")))
    assert (bad.code, str(bad)) == (500, "two outputs instead of one")


@pytest.mark.parametrize("rows_at_once", [4, 1, 3])  # the batch, one row of it, one request of it
def test_gpu_that_failed_is_nobodys_request(rows_at_once):
    """The worker ends, and another one takes the GPU: in this process every later request would fail too."""

    def fail(rows):
        if len(rows) == rows_at_once:
            return torch.AcceleratorError("CUDA error: device-side assert triggered")
        return ValueError("bad") if len(rows) == 4 else None

    with pytest.raises(torch.AcceleratorError):
        run([prepare(1, 2, 3), prepare(4)], Doubling(fail))


def test_answer_that_cannot_be_shaped_is_its_requests_alone():
    def shape(prepared, rows):
        if 4 in rows:
            raise InternalError("no numbers")
        return Rows(rows)

    outcomes = run([prepare(1), prepare(2)], Doubling(), shape)
    assert outcomes[0].predictions() == [2]
    assert (str(outcomes[1]), outcomes[1].code) == ("no numbers", 500)


def test_costs_are_shared_by_rows():
    computed = compute([prepare(1), prepare("x"), prepare(1, 2, 3)], Doubling(), shape_rows)
    assert [each.instances for each in computed] == [1, 0, 3]
    one, none, three = (each.forward_seconds for each in computed)
    assert three == pytest.approx(3 * one)
    assert none == 0
    assert computed[0].prepare_seconds > 0


class Mute(Exception):  # noqa: N818 - it is a stranger's
    """It cannot even say what it is."""

    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Mute(), "Mute"),
        (ValueError("a\n b"), "ValueError: a b"),
        (ValueError(), "ValueError"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("x" * 999), f"RuntimeError: {'x' * 286}"),
    ],
)
def test_error_is_described_in_one_bounded_line(error, text):
    assert describe(error) == text
