"""The classifier inside the model process: load an artifact, warm it up, predict a batch."""

import difflib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from pierhead_server.artifact import Artifact, TorchvisionClassifier
from pierhead_server.errors import ArtifactInvalidError, InternalError, InvalidArgumentError
from pierhead_server.images import BadPictureError, decode_image, preprocess
from pierhead_server.protocol import Parameters, Picture, PredictRequest, Ranking

if TYPE_CHECKING:
    from torch.export.pt2_archive._package import PT2ArchiveReader

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda outputs: outputs.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "none": lambda outputs: outputs,
}


class Classifier:
    """An image classifier on the CPU: pictures in, ranked classes out."""

    def __init__(self, module: torch.nn.Module, artifact: Artifact, *, max_image_pixels: int) -> None:
        self._module = module
        self._preprocessing = artifact.config.preprocessing
        self._activation = _ACTIVATIONS[artifact.config.activation]
        self._classes = len(artifact.labels)
        self._max_image_pixels = max_image_pixels

    def predict(self, request: PredictRequest) -> list[Ranking]:
        """One ranking for each picture. Raises InvalidArgumentError (a bad picture), InternalError (a bad model)."""
        batch = np.stack([self._read(index, picture) for index, picture in enumerate(request.pictures)])
        with torch.inference_mode():
            confidences = self._activation(self._module(torch.from_numpy(batch)).float())
            if not confidences.isfinite().all():
                raise InternalError("the model gave confidences that are no numbers")
            return _rank(confidences, request.parameters)

    def _read(self, index: int, picture: Picture) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        try:
            image = decode_image(picture.data, max_pixels=self._max_image_pixels)
            return preprocess(image, self._preprocessing, max_pixels=self._max_image_pixels)
        except BadPictureError as error:
            raise InvalidArgumentError(f"instances[{index}].{picture.field}: {error}") from None

    def warm_up(self) -> None:
        """Answer synthetic pictures as a client would send them, and check what the model makes of them.

        Raises ArtifactInvalidError.
        """
        for count in (1, 2):
            self._check_outputs(count)
        self.predict(PredictRequest((_synthetic_picture(),), Parameters()))

    def _check_outputs(self, count: int) -> None:
        side = self._preprocessing.crop
        try:
            with torch.inference_mode():
                outputs = self._module(torch.zeros(count, 3, side, side))
        except Exception as error:  # a model is a stranger's program: it may raise anything, and it is the artifact's
            hint = "" if count == 1 else ": export it with a dynamic batch dimension"
            raise ArtifactInvalidError(
                f"the model refuses a float32 input of {count}x3x{side}x{side}{hint}: {_first_line(error)}"
            ) from error
        if not isinstance(outputs, torch.Tensor):
            raise ArtifactInvalidError(f"the model gives a {type(outputs).__name__}: it must give one tensor")
        if outputs.shape != (count, self._classes):
            raise ArtifactInvalidError(
                f"labels: {self._classes} names, but the model gives {tuple(outputs.shape)} for a batch of {count}"
            )


def load_classifier(artifact: Artifact, *, threads: int, max_image_pixels: int) -> Classifier:
    """Load and warm up; raises ArtifactInvalidError that names the field and the fix."""
    torch.set_num_threads(threads)
    config = artifact.config
    if isinstance(config, TorchvisionClassifier):
        module = _load_torchvision(artifact.folder / config.weights, config.architecture, len(artifact.labels))
    else:
        module = _load_program(artifact.folder / config.program)
    classifier = Classifier(module, artifact, max_image_pixels=max_image_pixels)
    classifier.warm_up()
    return classifier


def _load_torchvision(weights: Path, architecture: str, classes: int) -> torch.nn.Module:
    # Imported here: it takes as long as torch itself, and a program does without.
    import torchvision
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=1)
        fix = f"did you mean {near[0]}?" if near else "see torchvision's classification models"
        raise ArtifactInvalidError(f"architecture: {architecture} is unknown: {fix}")
    module = _build_torchvision(architecture, classes)
    try:
        module.load_state_dict(load_file(weights), strict=True, assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise ArtifactInvalidError(
            f"weights: {weights.name} does not fit {architecture} with {classes} labels: {_first_line(error)}"
        ) from None
    return module.float().eval()


def _build_torchvision(architecture: str, classes: int) -> torch.nn.Module:
    """The architecture without weights."""
    from torchvision.models import get_model

    def build() -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a network would be initialised, which this one is not
            module: torch.nn.Module = get_model(architecture, weights=None, num_classes=classes)
            return module

    try:
        # Nothing is allocated or drawn at random there, which for large networks takes many seconds.
        with torch.device("meta"):
            return build()
    except NotImplementedError:
        return build()  # RegNet computes its widths with tensors


def _load_program(path: Path) -> torch.nn.Module:
    """A `torch.export` program, of which no part is a pickle.

    torch.export.load (2.15) unpickles without limits what the archive declares as such: weights and constants with
    `use_pickle`, opaque objects, sample inputs that are more than tensors, files of older formats. So the archive is
    looked through first, and every torch.load inside is held to `weights_only`. What remains is a graph of torch's
    operators, read with sympy: still a program, so only from an owner who may run programs here.
    """
    # Imported here: it takes as long as torch itself, and a torchvision architecture does without.
    from torch.export.pt2_archive._package import PT2ArchiveReader

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        _refuse_pickles(PT2ArchiveReader(str(path)))
        return torch.export.load(path).module()
    except ArtifactInvalidError:
        raise
    except Exception as error:  # the reader and the deserialiser raise whatever a broken file makes them trip over
        raise ArtifactInvalidError(f"program: {path.name} is no torch.export program: {_first_line(error)}") from error


def _refuse_pickles(archive: "PT2ArchiveReader") -> None:
    """Raises ArtifactInvalidError for an archive that declares pickled objects or machine code."""
    from torch.export.pt2_archive import constants as pt2

    for name in archive.get_file_names():
        if name.startswith(pt2.AOTINDUCTOR_DIR):
            raise ArtifactInvalidError(f"program: holds machine code ({name}): save it with torch.export.save")
        if name.startswith((pt2.WEIGHTS_DIR, pt2.CONSTANTS_DIR)):
            if name.endswith(".pt"):
                raise ArtifactInvalidError(f"program: holds a pickle ({name}): save it anew with torch.export.save")
            if name.endswith(".json"):
                _refuse_pickled_payloads(name, json.loads(archive.read_string(name)))


def _refuse_pickled_payloads(name: str, config: dict[str, dict[str, dict[str, object]]]) -> None:
    from torch.export.pt2_archive import constants as pt2

    objects = (pt2.CUSTOM_OBJ_FILENAME_PREFIX, pt2.OPAQUE_OBJ_FILENAME_PREFIX)
    for field, payload in config["config"].items():
        if payload["use_pickle"] or str(payload["path_name"]).startswith(objects):
            raise ArtifactInvalidError(f"program: {field} is a pickle ({name}): export plain tensors only")


def _rank(confidences: torch.Tensor, parameters: Parameters) -> list[Ranking]:
    """[batch, classes] to (index, confidence), best first; of equals the lower index first."""
    values, indices = confidences.sort(dim=1, descending=True, stable=True)
    most = parameters.max_predictions
    return [
        [
            (index, value)
            for index, value in zip(row_indices, row_values, strict=True)
            if value >= parameters.confidence_threshold
        ]
        for row_indices, row_values in zip(indices[:, :most].tolist(), values[:, :most].tolist(), strict=True)
    ]


def _synthetic_picture() -> Picture:
    encoded = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(encoded, format="JPEG")
    return Picture(encoded.getvalue(), "content")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
