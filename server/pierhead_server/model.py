"""Load what an artifact holds into something that answers requests."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from pierhead_server import compiled
from pierhead_server.artifact import Artifact, Sample
from pierhead_server.classifier import (
    ClassifierModule,
    Confidences,
    EagerRunner,
    ImageClassifier,
    Runner,
    check_classes,
    measure_drift,
    synthetic_pictures,
)
from pierhead_server.compiled import CompileError, Order
from pierhead_server.computing import Computed
from pierhead_server.config import CustomPredictor, ExportedProgram, Preprocessing, TorchScriptProgram, TorchvisionModel
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.modules import load_program, load_torchvision, read_metadata
from pierhead_server.program import TensorProgram
from pierhead_server.protocol import Request
from pierhead_server.splitting import Measured
from pierhead_server.tensors import Signature

logger = logging.getLogger(__name__)

COMPILED_FOLDER = "compiled"  # in an artifact, what was compiled from it


class Model(Protocol):
    """What answers requests, in two steps so that a device can compute one batch while the next is prepared."""

    @property
    def form(self) -> str:
        """What computes: quick, compiled or cuda."""
        ...

    @property
    def batch(self) -> int:
        """How many requests are best computed together."""
        ...

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        ...

    @property
    def sample(self) -> Sample | None:
        """A request that it must be able to answer; None where nobody knows one."""
        ...

    def measure(self, request: Request) -> Measured | None:
        """What is known of a request before anything is unpacked; None where its instances are not to be parted.

        Raises InstanceError.
        """
        ...

    def limit_memory(self, most: int) -> None:
        """Refuse pictures that take more bytes to decode."""
        ...

    def prepare(self, request: Request) -> Any:
        """What `compute` takes of one request. Raises ApiError."""
        ...

    def move(self, device: torch.device) -> None:
        """Compute on this GPU from now on. Whatever it raises, the model goes on as before."""
        ...

    def compute(self, prepared: Sequence[Any]) -> list[Computed]:
        """One outcome for each; an ApiError among them stays one."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """What decides how an artifact is loaded, beside the artifact."""

    max_image_pixels: int
    allow_code: bool = False
    compiled_dir: Path | None = None  # the cache of compiled forms; None: nothing is compiled
    device: str = "cpu"  # the compiled form is a CPU's: for a GPU none is made or taken


@dataclass(frozen=True)
class Loaded:
    """A model that answers, and what would make it faster."""

    model: Model
    order: Order | None = None  # what to compile; None: nothing, or it is compiled
    load: Callable[[], Model] | None = None  # what each worker loads for itself, in place of `model`


def load_model(artifact: Artifact, options: LoadOptions) -> Loaded:
    """Load, run on synthetic input, and check what comes. Raises ArtifactInvalidError that names field and fix.

    Its sample is answered by each worker: a predictor's code may start threads, and who has any cannot be forked.
    """
    config = artifact.config
    if isinstance(config, CustomPredictor):
        if not options.allow_code:
            raise ArtifactInvalidError(
                "format: predictor is code: set allowCode: true on the Model's version to run it"
            )
        # Imported here: nothing else runs code of an artifact's.
        from pierhead_server.predictor import PredictorModel, Unloaded, load_predictor

        load = partial(load_predictor, artifact.folder, artifact.sample)
        if config.load_in_workers:
            return Loaded(PredictorModel(Unloaded(), artifact.sample), load=load)
        return Loaded(load())
    if config.labels is None and not isinstance(config, TorchvisionModel):
        module = load_program(artifact, config)
        assert config.inputs is not None
        pixels = options.max_image_pixels
        return Loaded(
            TensorProgram(module, config.inputs, config.outputs, max_image_pixels=pixels, sample=artifact.sample)
        )
    return _load_classifier(artifact, config, options)


def _load_classifier(
    artifact: Artifact, config: TorchvisionModel | ExportedProgram | TorchScriptProgram, options: LoadOptions
) -> Loaded:
    labels, preprocessing = _resolve_metadata(artifact, config)

    def classify(runner: Runner) -> ImageClassifier:
        pixels = options.max_image_pixels
        model = ImageClassifier(runner, labels, preprocessing, max_image_pixels=pixels, sample=artifact.sample)
        model.warm_up()
        return model

    key = compiled.compute_key(
        weights=artifact.folder / (config.weights if isinstance(config, TorchvisionModel) else config.program),
        model=f"{config.model_dump_json(exclude={'labels'})} {preprocessing.model_dump_json()} {len(labels)}",
    )
    for entry in _entries(artifact, options, key):
        try:
            return Loaded(classify(compiled.load(entry, side=preprocessing.crop)))
        except CompileError as error:
            logger.warning("%s: the quick form is loaded", error)
    network = (
        load_torchvision(artifact, config, len(labels))
        if isinstance(config, TorchvisionModel)
        else load_program(artifact, config)
    )
    exact = None
    if config.precision != "float32":
        module = ClassifierModule(network, preprocessing, config.activation, "float32")
        exact = _compute_exactly(module, preprocessing.crop, len(labels))
    quick = EagerRunner(ClassifierModule(network, preprocessing, config.activation, config.precision))
    check_classes(quick, preprocessing.crop, len(labels))
    if exact is not None:
        _report_drift(config.precision, quick(synthetic_pictures(len(exact), preprocessing.crop)), exact)
    model = classify(quick)
    # A TorchScript program cannot be exported.
    if options.compiled_dir is None or options.device != "cpu" or isinstance(config, TorchScriptProgram):
        return Loaded(model)
    return Loaded(model, Order(quick, preprocessing.crop, options.compiled_dir / key))


_COMPARED = 8  # pictures by which precisions are compared


def _compute_exactly(module: ClassifierModule, side: int, classes: int) -> Confidences:
    """What the model makes of synthetic pictures in float32. Raises ArtifactInvalidError."""
    runner = EagerRunner(module)
    check_classes(runner, side, classes)
    return runner(synthetic_pictures(_COMPARED, side))


def _report_drift(precision: str, given: Confidences, exact: Confidences) -> None:
    try:
        drift = measure_drift(given, exact)
    except ValueError:
        return  # of numbers that are none the warm-up tells
    changed = int((given.argmax(axis=1) != exact.argmax(axis=1)).sum())
    told = "precision %s: of %d synthetic pictures a confidence moves by at most %.4f, and %d have another best class"
    logger.info(told, precision, len(exact), drift, changed)


def _resolve_metadata(
    artifact: Artifact, config: TorchvisionModel | ExportedProgram | TorchScriptProgram
) -> tuple[Sequence[str], Preprocessing]:
    """The labels and the preprocessing: model.yaml's, where it has them, else torchvision's."""
    if not isinstance(config, TorchvisionModel) or config.metadata is None:
        assert artifact.labels is not None
        return artifact.labels, config.preprocessing
    labels, preprocessing = read_metadata(config.metadata)
    given = "preprocessing" in config.model_fields_set
    return artifact.labels or labels, config.preprocessing if given else preprocessing


def _entries(artifact: Artifact, options: LoadOptions, key: str) -> Iterator[Path]:
    """Where a compiled form lies: in the node's cache, or beside the artifact if that may bring code."""
    if options.device != "cpu":
        return
    places = [options.compiled_dir] if options.compiled_dir else []
    if options.allow_code:
        places.append(artifact.folder / COMPILED_FOLDER)
    for place in places:
        if (place / key).is_dir():
            yield place / key
