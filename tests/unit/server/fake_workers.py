"""Workers without processes: the contract alone, answered in the listener's own process by a model of three classes."""

import asyncio
import sys

import msgspec
import numpy as np
from pierhead_server.budget import Budget
from pierhead_server.errors import ApiError, InstanceError, ValueTensorError
from pierhead_server.messages import Call, Reply
from pierhead_server.protocol import (
    Limits,
    RankingParameters,
    ServedModel,
    parse,
    parse_ranking_parameters,
    read_picture,
    shape,
    shape_error,
    shape_ranking,
)
from pierhead_server.signature import Signature, TensorSpec

LABELS = ("ant", "bee", "cat")
CONFIDENCES = np.array([0.25, 0.625, 0.125], dtype=np.float32)
SERVED = ServedModel("photos-2", "projects/default/locations/local/models/photos", "Photos", "2")
SAMPLE = b'{"instances": [{"b64": "AAAA"}]}'
SIGNATURE = Signature((TensorSpec("image", "bytes", ()),), (TensorSpec("confidences", "float32", (3,)),))


class Classes:
    """The same confidences for each picture."""

    labels = LABELS
    echoes_key = True

    def __init__(self, count: int, parameters: RankingParameters) -> None:
        self._count = count
        self._parameters = parameters

    def predictions(self):
        return [shape_ranking(CONFIDENCES, LABELS, self._parameters)] * self._count

    def tensors(self):
        return {"confidences": np.stack([CONFIDENCES] * self._count)}


class FakeWorkers:
    """What app.py needs of Workers."""

    def __init__(self, most_bytes: int = sys.maxsize) -> None:
        self.signature: Signature | None = SIGNATURE
        self.not_ready: str | None = None
        self.failure: str | None = None
        self.dying: str | None = None
        self.form_reason: str | None = None
        self.refusal: ApiError | None = None  # of check_capacity
        self.held = False  # whether answers are withheld
        self.waiting = 0
        self.held_bytes = 0
        self.budget = Budget(most_bytes)
        self.budget.watch(lambda: self.held_bytes)
        self.calls: list[Call] = []
        self.called = asyncio.Event()
        self.futures: list[asyncio.Future[Reply]] = []

    def check_capacity(self) -> None:
        if self.refusal:
            raise self.refusal

    def submit(self, call: Call) -> "asyncio.Future[Reply]":
        self.check_capacity()
        self.calls.append(call)
        self.called.set()
        self.futures.append(asyncio.get_running_loop().create_future())
        if not self.held:
            self.futures[-1].set_result(self.answer(call))
        return self.futures[-1]

    def answer(self, call: Call) -> Reply:
        """As a worker answers."""
        return answer(call)


def answer(call: Call) -> Reply:
    """As a worker answers."""
    if call.dialect == "probe":
        call = msgspec.structs.replace(call, body=SAMPLE)
    try:
        request = parse(call, Limits(max_instances=3), SIGNATURE)
        parameters = parse_ranking_parameters(request.arguments)
        for index, instance in enumerate(request.instances):
            try:
                read_picture(instance)
            except ValueTensorError as error:
                raise InstanceError(index, error.field, error.cause) from None
        return shape(request, Classes(len(request.instances), parameters), SERVED)
    except ApiError as error:
        return shape_error(call.dialect, error)
