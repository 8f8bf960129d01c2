"""`pierhead-server convert`: an artifact of torch's becomes one of OpenVINO's, which is served without torch."""

import asyncio
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from prometheus_client import CollectorRegistry

from pierhead_server.artifact import WARMUP_FILE, Artifact, compute_digest, read_artifact
from pierhead_server.batch.errors import OutputNotWritableError, RefusedError
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.storage import Storage
from pierhead_server.config import (
    MODEL_FILE,
    CustomPredictor,
    ExportedProgram,
    OpenvinoProgram,
    Preprocessing,
    TorchScriptProgram,
    TorchvisionModel,
    parse_config,
)
from pierhead_server.converted import NETWORK, Array, ConversionError, Order, choose_precision
from pierhead_server.converting import Flat, Source, compare, compare_precision, convert, save
from pierhead_server.eager import ClassifierModule
from pierhead_server.errors import ArtifactInvalidError, ArtifactUnreachableError, SettingsInvalidError
from pierhead_server.fetch import first_line
from pierhead_server.model import ClassifierFacts, LoadOptions, load_model
from pierhead_server.openvino_network import ArtifactNetwork, find_other_operators, find_types, read_text
from pierhead_server.serve import fetch
from pierhead_server.settings import Settings
from pierhead_server.signature import TensorSpec

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.txt"
_ADDRESS = re.compile(r"(gs|s3|az)://[^/]+/.+")
_ANY_PIXELS = 2**31  # of pictures that nobody sends
_PART_BYTES = 1 << 20  # of a file that is copied


@dataclass(frozen=True)
class Converted:
    """What was made."""

    digest: str
    others: Sequence[str]  # its operators for which the Model's version needs allowCode


def run(settings: Settings, destination: str) -> None:
    """Convert the artifact that the settings name into a folder or an address, and tell of it. Raises StartupError."""
    if "://" in destination and not _ADDRESS.fullmatch(destination):
        raise SettingsInvalidError(f"DESTINATION: {destination}: must be a folder, or a path in gs://, s3:// or az://")
    source = fetch(settings)
    if "://" in destination:
        made = convert_into_storage(source, destination, settings)
    else:
        made = convert_artifact(source, Path(destination))
    print(describe(made, destination))


def describe(made: Converted, destination: str) -> str:
    """What to write in the Model's manifest."""
    uri = destination if "://" in destination else "<where you store it>"
    lines = [f"converted into {destination}", "an entry of the Model's spec.versions:"]
    lines += [f'- name: "<its name>"\n  artifactUri: {uri}\n  digest: {made.digest}\n  runtime: OpenVINO']
    if made.others:
        lines.append(f"  allowCode: true  # for {', '.join(made.others)}: OpenVINO does not check their indices")
    return "\n".join(lines)


def convert_into_storage(source: Path, uri: str, settings: Settings) -> Converted:
    """Convert into an address under which no artifact lies. Raises StartupError.

    What a try left that was ended in the middle is written over: without a model.yaml it is no artifact.
    """
    storage = Storage(settings.storage_emulator_host, Pulse(CollectorRegistry()), settings.batch_allowed_uris)
    _check_free(storage, uri)
    with tempfile.TemporaryDirectory(prefix="converted-") as folder:
        made = convert_artifact(source, Path(folder) / "artifact")
        _check_free(storage, uri)  # it took a while
        # model.yaml is the last: without it, nobody takes the rest for an artifact.
        for path in sorted((Path(folder) / "artifact").iterdir(), key=lambda path: path.name == MODEL_FILE):
            with path.open("rb") as file, storage.writer(f"{uri.rstrip('/')}/{path.name}") as sink:
                while part := file.read(_PART_BYTES):
                    sink.write(part)
    return made


def _check_free(storage: Storage, uri: str) -> None:
    try:
        there = asyncio.run(storage.list_folder(uri))
    except (RefusedError, FileNotFoundError) as error:
        raise OutputNotWritableError(str(error)) from None
    if any(entry.uri.endswith(f"/{MODEL_FILE}") for entry in there):
        raise ArtifactInvalidError(f"{uri}: something is there: name another address")


def convert_artifact(source: Path, destination: Path) -> Converted:
    """Convert into a folder that is not there, or empty: whole or not at all. Raises StartupError."""
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise ArtifactInvalidError(f"{destination}: something is there: name another folder")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as beside:
            making = Path(beside) / "artifact"
            making.mkdir()
            others = _convert_into(making, read_artifact(source))
            digest = compute_digest(making)
            making.rename(destination)
    except OSError as error:
        raise ArtifactUnreachableError(f"{destination}: it cannot be written: {first_line(error)}") from None
    return Converted(digest, others)


def _convert_into(making: Path, artifact: Artifact) -> list[str]:
    """Write an artifact, and compare it with the one it is made of. Gives its operators that need allowCode."""
    config = artifact.config
    if isinstance(config, OpenvinoProgram | CustomPredictor):
        raise ArtifactInvalidError(
            f"format: {config.format} is not converted: torchvision, torch.export and torchscript are"
        )
    # Nothing is kept there: it only has an order be made.
    loaded = load_model(artifact, LoadOptions(_ANY_PIXELS, compiled_dir=making / "none"))
    order = loaded.order
    assert order is not None
    try:
        source = order.load()
        expected = [source.compute(batch) for batch in source.batches]
        described = _describe_artifact(artifact, config, order, source)
        _save(making, artifact, config, order, source)
        (making / MODEL_FILE).write_text(
            yaml.safe_dump(described, sort_keys=False, allow_unicode=True, default_flow_style=None), "utf-8"
        )
        _check(making, source, expected)
    except ConversionError as error:
        raise ArtifactInvalidError(str(error)) from error
    except (ArtifactInvalidError, OSError):
        raise
    except Exception as error:  # torch, OpenVINO and a stranger's model raise whatever makes them trip
        raise ArtifactInvalidError(f"the model cannot be converted: {first_line(error)}") from error
    return find_other_operators(find_types(read_text(making / NETWORK)))


_TorchConfig = TorchvisionModel | ExportedProgram | TorchScriptProgram


def _describe_artifact(artifact: Artifact, config: _TorchConfig, order: Order, source: Source) -> dict[str, Any]:
    """`model.yaml`'s fields."""
    described: dict[str, Any] = {"format": "openvino", "program": NETWORK}
    if source.takes_pictures:
        facts = ClassifierFacts.complete(artifact, config, order.metadata)
        on_lines = all(name.splitlines() == [name] for name in facts.labels)
        described["labels"] = LABELS_FILE if on_lines else list(facts.labels)
        described["activation"] = config.activation
        described["preprocessing"] = facts.preprocessing.model_dump(mode="json")
    else:
        assert isinstance(config, ExportedProgram | TorchScriptProgram)
        described["inputs"] = [entry.model_dump(mode="json", exclude_unset=True) for entry in config.inputs or ()]
        described["outputs"] = [spec.name for spec in source.outputs]
    return described | {"precision": config.precision}


def _save(making: Path, artifact: Artifact, config: _TorchConfig, order: Order, source: Source) -> None:
    """The network with its names and its weights, the labels, and the sample."""
    inputs, outputs = ["pictures"], [spec.name for spec in source.outputs]
    if source.takes_pictures:
        facts = ClassifierFacts.complete(artifact, config, order.metadata)
        source = _bare(source, facts.preprocessing)
        (making / LABELS_FILE).write_text("".join(f"{name}\n" for name in facts.labels), "utf-8")
    else:
        assert isinstance(config, ExportedProgram | TorchScriptProgram)
        inputs = [entry.name for entry in config.inputs or ()]
    network = convert(source)
    for ports, names in ((network.inputs, inputs), (network.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    save(network, making / NETWORK)
    if artifact.sample:
        (making / WARMUP_FILE).write_bytes(artifact.sample.body)


def _bare(source: Source, how: Preprocessing) -> Source:
    """A classifier's network alone: the server puts normalising and activation around it."""
    module: Any = source.module
    classifier: ClassifierModule = module.module
    mean, std = (np.asarray(values, dtype=np.float32).reshape(3, 1, 1) for values in (how.mean, how.std))
    (outputs,) = source.outputs

    def normalise(pictures: Array) -> Array:
        return np.ascontiguousarray((pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std)

    return replace(
        source,
        module=Flat(classifier.network, lambda given: (given,)),  # type: ignore[arg-type,return-value]
        batches=[[normalise(pictures)] for (pictures,) in source.batches],
        outputs=(TensorSpec("outputs", "float32", outputs.shape),),
        takes_pictures=False,
    )


def _check(making: Path, source: Source, expected: Sequence[Sequence[Array]]) -> None:
    """Whether what was written, as it is served, computes what torch does. Raises ConversionError."""
    config = parse_config((making / MODEL_FILE).read_bytes())
    assert isinstance(config, OpenvinoProgram)
    classes = source.outputs[0].shape[0] if source.takes_pictures else None
    exact = ArtifactNetwork(making, config.model_copy(update={"precision": "float32"}), classes, allow_code=True)
    exact.load()
    compare(exact, source, expected)
    precision = choose_precision(config.precision)
    if precision != "float32":
        network = ArtifactNetwork(making, config, classes, allow_code=True)
        network.load()
        compare_precision(network, precision, source, expected)
