"""The image classifier: pictures in, confidences out, in the form that computes fastest here."""

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pierhead_server.artifact import Sample
from pierhead_server.comparing import measure_drift, synthetic_pictures
from pierhead_server.computing import Computed, Prepared, compute, measure_rows, prepare_rows
from pierhead_server.config import Preprocessing
from pierhead_server.errors import ApiError, ArtifactInvalidError, InternalError
from pierhead_server.images import BadPictureError, PixelBudget, Pixels, fit, measure, read_image
from pierhead_server.messages import Call, Form
from pierhead_server.protocol import (
    Limits,
    RankingParameters,
    Request,
    encode_json,
    parse,
    parse_ranking_parameters,
    read_picture,
    shape_ranking,
)
from pierhead_server.splitting import Measured
from pierhead_server.tensors import Signature, TensorSpec, ValueTensorError

if TYPE_CHECKING:
    import torch

Confidences = npt.NDArray[np.float32]  # [pictures, classes]

logger = logging.getLogger(__name__)

_COMPARED = 3  # pictures by which forms are compared: a batch that is not full
# Of a confidence between a CPU and a GPU: TF32 and other orders of adding up stay far below, half precision below.
_MOST_DRIFT = 0.1


class Runner(Protocol):
    """One form of a classifier on one device."""

    form: Form
    batch: int  # how many pictures it computes best at a time

    def __call__(self, pictures: Sequence[Pixels]) -> Confidences:
        """Any number of pictures, at least one."""
        ...


@dataclass(frozen=True)
class Classes:
    """One request's confidences."""

    confidences: Confidences
    labels: Sequence[str]
    parameters: RankingParameters

    echoes_key = True

    def predictions(self) -> list[object]:
        """Vertex AI's image shape, one for each picture."""
        return [shape_ranking(row, self.labels, self.parameters) for row in self.confidences]

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """All confidences, in the classes' order."""
        return {"confidences": self.confidences}


class ImageClassifier:
    """Answers requests of pictures; how it computes may be exchanged for a faster form."""

    def __init__(
        self,
        runner: Runner,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        *,
        max_image_pixels: int,
        sample: Sample | None = None,
    ) -> None:
        self.runner = runner
        self._own_sample = sample
        self._labels = tuple(labels)
        self._preprocessing = preprocessing
        self._pixels = PixelBudget(max_image_pixels)

    @cached_property
    def signature(self) -> Signature:
        """A picture in, a confidence for each class out."""
        return Signature(
            inputs=(TensorSpec("image", "bytes", ()),),
            outputs=(TensorSpec("confidences", "float32", (len(self._labels),)),),
        )

    @cached_property
    def sample(self) -> Sample:
        """The artifact's own, else a picture as a client sends it: a JPEG that has to be scaled."""
        if self._own_sample:
            return self._own_sample
        side = min(2 * self._preprocessing.resize, math.isqrt(self._pixels.most))
        encoded = BytesIO()
        Image.fromarray(synthetic_pictures(1, side)[0]).save(encoded, format="JPEG")
        return Sample(encode_json({"instances": [encoded.getvalue()]}), "a synthetic picture")

    @property
    def batch(self) -> int:
        """How many requests of one picture are best computed together."""
        return self.runner.batch

    @property
    def form(self) -> Form:
        """What computes."""
        return self.runner.form

    def limit_memory(self, most: int) -> None:
        """Refuse pictures that take more bytes to decode."""
        self._pixels.limit_memory(most)

    def measure(self, request: Request) -> Measured:
        """The pixels of each picture; its bytes are taken out of what is around them. Raises InstanceError."""
        found = list(measure_rows(request.instances, self._measure_row))
        return Measured([instance for instance, _ in found], [pixels for _, pixels in found])

    def prepare(self, request: Request) -> Prepared[Pixels, RankingParameters]:
        """Decode and preprocess. Raises InvalidArgumentError."""
        return prepare_rows(request, self._read_row, parse_ranking_parameters)

    def compute(self, prepared: Sequence[Prepared[Pixels, RankingParameters] | ApiError]) -> list[Computed]:
        """One outcome for each request, whatever the others are."""
        return compute(prepared, self._forward, self._shape)

    def _measure_row(self, instance: object) -> tuple[object, int]:
        # A list stays one: to read it twice would take longer than anything else of it.
        picture = instance if isinstance(instance, list) else read_picture(instance)
        read = {**instance, _picture_field(instance)[1:]: picture} if isinstance(instance, dict) else picture
        try:
            return read, measure(picture, self._preprocessing, max_pixels=self._pixels.most)
        except BadPictureError as error:
            raise ValueTensorError(_picture_field(instance), str(error)) from None

    def _read_row(self, instance: object) -> Pixels:
        picture = read_picture(instance)
        try:
            if isinstance(picture, bytes):
                return read_image(picture, self._preprocessing, max_pixels=self._pixels.most, budget=self._pixels)
            return fit(picture, self._preprocessing, max_pixels=self._pixels.most, budget=self._pixels)
        except BadPictureError as error:
            raise ValueTensorError(_picture_field(instance), str(error)) from None

    def _forward(self, rows: Sequence[Pixels]) -> Confidences:
        return self.runner(rows)

    def _shape(self, prepared: Prepared[Pixels, RankingParameters], rows: Confidences) -> Classes:
        if not np.isfinite(rows).all():
            raise InternalError("the model gave confidences that are no numbers")
        return Classes(rows, self._labels, prepared.parameters)

    def move(self, device: "torch.device") -> None:
        """Compute on a GPU from now on."""
        # Imported here: nothing else needs them, and the compiled form does without torch.
        from pierhead_server.cuda import make_cuda_runner
        from pierhead_server.eager import EagerRunner

        assert isinstance(self.runner, EagerRunner)
        pictures = synthetic_pictures(_COMPARED, self._preprocessing.crop)
        runner = make_cuda_runner(self.runner.module, device, self._preprocessing.crop)
        drift = measure_drift(runner(pictures), self.runner(pictures))
        logger.info("on %s a confidence moves by at most %.4f", device, drift)
        if drift > _MOST_DRIFT:
            raise RuntimeError(f"it computes something else there: a confidence moves by {drift:.4f}")
        self.runner = runner

    def warm_up(self) -> None:
        """Answer the sample, so that no client waits for what happens only once. Raises ArtifactInvalidError."""
        try:
            # How many instances a client may send is the workers' business.
            request = parse(Call("probe", self.sample.body), Limits(sys.maxsize), self.signature)
            (computed,) = self.compute([self.prepare(request)])
            if isinstance(computed.outcome, ApiError):
                raise computed.outcome
        except ApiError as error:
            raise ArtifactInvalidError(self.sample.explain(str(error))) from None


def _picture_field(instance: object) -> str:
    """Where in the instance the picture was, for messages."""
    if isinstance(instance, dict):
        for name in ("content", "b64", "image", "image_bytes"):
            if name in instance:
                return f".{name}"
    return ""
