"""Load what an artifact holds into something that answers requests."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pierhead_server.artifact import Artifact, Sample, read_state
from pierhead_server.classifier import Confidences, ImageClassifier, Runner
from pierhead_server.comparing import measure_drift, synthetic_pictures
from pierhead_server.computing import Computed
from pierhead_server.config import (
    CustomPredictor,
    ExportedProgram,
    OpenvinoProgram,
    Preprocessing,
    TorchScriptProgram,
    TorchvisionModel,
)
from pierhead_server.converted import (
    ConversionError,
    Metadata,
    Network,
    Order,
    PictureRunner,
    Precision,
    TensorRunner,
    compute_key,
)
from pierhead_server.devices import has_torch
from pierhead_server.errors import ApiError, ArtifactInvalidError
from pierhead_server.messages import Call
from pierhead_server.program import TensorProgram
from pierhead_server.protocol import Limits, Request, parse
from pierhead_server.splitting import Measured
from pierhead_server.tensors import Signature

if TYPE_CHECKING:
    import torch

    from pierhead_server.converting import Source
    from pierhead_server.eager import ClassifierModule

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

    def move(self, device: "torch.device") -> None:
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
    order: Order | None = None  # what makes its compiled form; None: there is one, or there will be none
    load: Callable[[], Model] | None = None  # what each worker loads for itself, in place of `model`
    slow: bool = False  # whether `load` may take minutes: it is a stranger's code
    network: Network | None = None  # what `model` computes with, once a worker has loaded it
    # The same in its first form, where a worker cannot use `network`. Raises ArtifactInvalidError.
    load_first: "Callable[[], Loaded] | None" = None
    state: Sequence[tuple[str, int, int]] = ()  # of the artifact's files, before they were loaded


def load_model(artifact: Artifact, options: LoadOptions) -> Loaded:
    """Load, run on synthetic input, and check what comes. Raises ArtifactInvalidError that names field and fix.

    Its sample is answered by each worker: a predictor's code may start threads, and who has any cannot be forked.
    """
    state = read_state(artifact.folder)
    return replace(_load(artifact, options), state=state)


def _load(artifact: Artifact, options: LoadOptions) -> Loaded:
    if isinstance(artifact.config, CustomPredictor):
        return _load_predictor(artifact, artifact.config, options)
    if isinstance(artifact.config, OpenvinoProgram):
        return _load_openvino(artifact, artifact.config, options)
    if not has_torch():
        raise ArtifactInvalidError(
            f"format: {artifact.config.format} needs PyTorch, which this image is without: leave out runtime: "
            "OpenVINO of the Model's version, or convert the artifact with pierhead-server convert"
        )
    if artifact.config.labels is None and not isinstance(artifact.config, TorchvisionModel):
        return _load_program(artifact, artifact.config, options)
    return _load_classifier(artifact, artifact.config, options)


def _load_predictor(artifact: Artifact, config: CustomPredictor, options: LoadOptions) -> Loaded:
    if not options.allow_code:
        raise ArtifactInvalidError("format: predictor is code: set allowCode: true on the Model's version to run it")
    # Imported here: nothing else runs code of an artifact's.
    from pierhead_server.predictor import PredictorModel, Unloaded, load_predictor

    load = partial(load_predictor, artifact.folder, artifact.sample)
    if config.load_in_workers:
        return Loaded(PredictorModel(Unloaded(), artifact.sample), load=load, slow=True)
    return Loaded(load())


def _load_openvino(artifact: Artifact, config: OpenvinoProgram, options: LoadOptions) -> Loaded:
    """It is compiled already; each worker makes it ready for itself."""
    # Imported here: other formats do without.
    from pierhead_server.openvino_network import ArtifactNetwork

    labels, pixels = artifact.labels, options.max_image_pixels
    classes = None if labels is None else len(labels)
    network = ArtifactNetwork(artifact.folder, config, classes, allow_code=options.allow_code)
    model: ImageClassifier | TensorProgram
    if labels is not None:
        model = ImageClassifier(
            PictureRunner(network), labels, config.preprocessing, max_image_pixels=pixels, sample=artifact.sample
        )
    else:
        assert config.inputs is not None
        model = TensorProgram(
            TensorRunner(network),
            config.inputs,
            network.described.outputs,
            max_image_pixels=pixels,
            sample=artifact.sample,
        )

    def load() -> Model:
        network.load()
        return model

    return Loaded(model, load=load)


# --- programs of named tensors ---


def _load_program(artifact: Artifact, config: ExportedProgram | TorchScriptProgram, options: LoadOptions) -> Loaded:
    key = compute_key(weights=artifact.folder / config.program, model=config.model_dump_json())
    load_first = partial(_load_eager_program, artifact, config, options, key)
    assert config.inputs is not None
    for network in _find_networks(artifact, options, key):
        model = TensorProgram(
            TensorRunner(network),
            config.inputs,
            network.described.outputs,
            max_image_pixels=options.max_image_pixels,
            sample=artifact.sample,
        )
        return Loaded(model, network=network, load_first=load_first)
    return load_first()


def _load_eager_program(
    artifact: Artifact, config: ExportedProgram | TorchScriptProgram, options: LoadOptions, key: str
) -> Loaded:
    # Imported here: the compiled form does without torch.
    from pierhead_server.eager import make_program
    from pierhead_server.modules import load_program

    assert config.inputs is not None
    pixels = options.max_image_pixels
    module = load_program(artifact, config)
    model = make_program(module, config.inputs, config.outputs, max_image_pixels=pixels, sample=artifact.sample)

    def load_source() -> "Source":
        from pierhead_server.converting import make_program_source
        from pierhead_server.eager import EagerProgram

        assert isinstance(model.runner, EagerProgram)
        assert config.inputs is not None
        return make_program_source(
            model.runner,
            config.inputs,
            model.signature.outputs,
            is_script=isinstance(config, TorchScriptProgram),
            samples=_prepare_sample(model) if artifact.sample else (),
        )

    loaded = Loaded(model, load_first=partial(_load_eager_program, artifact, config, options, key))
    return _order(loaded, load_source, options, key, config.precision)


# --- classifiers ---


def _load_classifier(
    artifact: Artifact, config: TorchvisionModel | ExportedProgram | TorchScriptProgram, options: LoadOptions
) -> Loaded:
    own_labels = artifact.labels and len(artifact.labels)
    key = compute_key(
        weights=artifact.folder / (config.weights if isinstance(config, TorchvisionModel) else config.program),
        # What is left out torchvision's metadata may say.
        model=f"{config.model_dump_json(exclude={'labels'}, exclude_unset=True)} {own_labels}",
    )
    load_first = partial(_load_eager_classifier, artifact, config, options, key)
    for network in _find_networks(artifact, options, key):
        classifier = ClassifierFacts.complete(artifact, config, network.described.metadata)
        return Loaded(classifier.make(PictureRunner(network), options), network=network, load_first=load_first)
    return load_first()


@dataclass(frozen=True)
class ClassifierFacts:
    """What is known of a classifier before torch is there."""

    artifact: Artifact
    config: TorchvisionModel | ExportedProgram | TorchScriptProgram
    labels: Sequence[str]
    preprocessing: Preprocessing

    @classmethod
    def complete(
        cls,
        artifact: Artifact,
        config: TorchvisionModel | ExportedProgram | TorchScriptProgram,
        metadata: Metadata | None,
    ) -> "ClassifierFacts":
        """The labels and the preprocessing: model.yaml's, where it has them, else torchvision's."""
        if metadata is None:
            assert artifact.labels is not None
            return cls(artifact, config, artifact.labels, config.preprocessing)
        given = "preprocessing" in config.model_fields_set
        preprocessing = config.preprocessing if given else Preprocessing(**metadata.preprocessing)
        return cls(artifact, config, artifact.labels or metadata.labels, preprocessing)

    def make(self, runner: Runner, options: LoadOptions) -> ImageClassifier:
        return ImageClassifier(
            runner,
            self.labels,
            self.preprocessing,
            max_image_pixels=options.max_image_pixels,
            sample=self.artifact.sample,
        )

    def load_network(self) -> "torch.nn.Module":
        """Torch's. Raises ArtifactInvalidError."""
        from pierhead_server.modules import load_program, load_torchvision

        if isinstance(self.config, TorchvisionModel):
            return load_torchvision(self.artifact, self.config, len(self.labels))
        return load_program(self.artifact, self.config)


def _load_eager_classifier(
    artifact: Artifact,
    config: TorchvisionModel | ExportedProgram | TorchScriptProgram,
    options: LoadOptions,
    key: str,
) -> Loaded:
    # Imported here: the compiled form does without torch.
    from pierhead_server.eager import ClassifierModule, EagerRunner, check_classes
    from pierhead_server.modules import read_metadata

    named = config.metadata if isinstance(config, TorchvisionModel) else None
    metadata = None if named is None else read_metadata(named)
    classifier = ClassifierFacts.complete(artifact, config, metadata)
    preprocessing, classes = classifier.preprocessing, len(classifier.labels)
    side = preprocessing.crop
    network = classifier.load_network()
    exact = None
    if config.precision != "float32":
        module = ClassifierModule(network, preprocessing, config.activation, "float32")
        exact = _compute_exactly(module, side, classes)
    quick = EagerRunner(ClassifierModule(network, preprocessing, config.activation, config.precision))
    check_classes(quick, side, classes)
    if exact is not None:
        _report_drift(config.precision, quick(synthetic_pictures(len(exact), side)), exact)
    model = classifier.make(quick, options)
    model.warm_up()

    def load_source() -> "Source":
        from pierhead_server.converting import make_classifier_source

        module = quick.module
        if config.precision != "float32":  # its weights are rounded already
            module = ClassifierModule(classifier.load_network(), preprocessing, config.activation, "float32")
        return make_classifier_source(
            module,
            side,
            classes,
            is_script=isinstance(config, TorchScriptProgram),
            samples=_prepare_sample(model) if artifact.sample else (),
        )

    loaded = Loaded(model, load_first=partial(_load_eager_classifier, artifact, config, options, key))
    return _order(loaded, load_source, options, key, config.precision, metadata)


_COMPARED = 8  # pictures by which precisions are compared


def _compute_exactly(module: "ClassifierModule", side: int, classes: int) -> Confidences:
    """What the model makes of synthetic pictures in float32. Raises ArtifactInvalidError."""
    from pierhead_server.eager import EagerRunner, check_classes

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


# --- the compiled form ---


def _find_networks(artifact: Artifact, options: LoadOptions, key: str) -> Iterator[Network]:
    """The compiled forms that are there: in the node's cache, or beside the artifact if that may bring code.

    What OpenVINO reads is data, but its reader and its kernels are not made for a stranger's.
    """
    if options.device != "cpu":
        return
    places = [options.compiled_dir] if options.compiled_dir else []
    if options.allow_code:
        places.append(artifact.folder / COMPILED_FOLDER)
    for place in places:
        if (place / key).is_dir():
            try:
                yield Network(place / key)
            except ConversionError as error:
                logger.warning("%s: the quick form is loaded", error)


def _order(
    loaded: Loaded,
    load: "Callable[[], Source]",
    options: LoadOptions,
    key: str,
    precision: Precision,
    metadata: Metadata | None = None,
) -> Loaded:
    """The same with an order for its compiled form, where there may be one."""
    if options.compiled_dir is None or options.device != "cpu":
        return loaded
    return replace(loaded, order=Order(load, options.compiled_dir / key, precision, metadata))


def _prepare_sample(model: ImageClassifier | TensorProgram) -> Sequence[Any]:
    """The rows of the model's own sample; none where it is told already that it cannot be answered."""
    try:
        request = parse(Call("probe", model.sample.body), Limits(sys.maxsize), model.signature)
        return model.prepare(request).rows
    except ApiError:
        return ()
