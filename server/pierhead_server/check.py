"""`pierhead-server check DIR`: how far each precision moves a model's answers, and how fast it is, on this CPU."""

import argparse
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pierhead_server.artifact import WARMUP_FILE, Artifact, read_artifact
from pierhead_server.config import CustomPredictor, ImageInput, ModelConfig, OpenvinoProgram, TorchvisionModel
from pierhead_server.converted import Array, ConversionError, Network, Precision
from pierhead_server.errors import ApiError, ArtifactInvalidError, InvalidArgumentError, StartupError
from pierhead_server.images import bound_pillow
from pierhead_server.logs import configure_logging
from pierhead_server.messages import Call
from pierhead_server.model import LoadOptions, Model, load_model
from pierhead_server.precisions import Agreement, Checked, Measured, Missing, Speed, advise, make_table
from pierhead_server.protocol import Limits, Request, parse
from pierhead_server.settings import Settings, load_settings

if TYPE_CHECKING:
    from pierhead_server.converting import Conversion, Source

_EXIT_UNSERVABLE, _EXIT_USAGE = 1, 2
_MOST_NAMED = 3  # files that were skipped
_MOST_CHARACTERS = 300  # of a cause

Batch = Sequence[Array]  # one array an input, with the batch first
Form = Callable[[Batch], Sequence[Array]]


class _UsageError(Exception):
    """The command was asked for what it cannot do; the message says why."""


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 where the model is served, if only in its first form; 1 where it is not; 2 of wrong usage."""
    parser = argparse.ArgumentParser(
        "pierhead-server check",
        description="Tell how far each precision moves a model's answers, and how fast it is on this CPU.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with model.yaml")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to compare by, also in folders inside of this one"
    )
    given = parser.parse_args(arguments)
    try:
        settings = load_settings(artifact_uri=given.folder.resolve().as_uri())
        # The report tells what there is to know.
        configure_logging(level="error", json=False)
        for line in _check(given.folder, given.images, settings):
            print(line)
    except StartupError as error:
        print(f"{error.reason}: {' '.join(str(error).split())}", file=sys.stderr)
        return _EXIT_UNSERVABLE
    except _UsageError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return _EXIT_USAGE
    return 0


def _check(folder: Path, images: Path | None, settings: Settings) -> Iterator[str]:
    """The lines of the report. Raises StartupError for a model that cannot be served, and _UsageError."""
    if images and not images.is_dir():
        raise _UsageError(f"argument --images: no such folder: {images}")
    artifact = read_artifact(folder)
    if isinstance(artifact.config, CustomPredictor):
        yield "A custom predictor computes as its code says: it has one form, and no precision to choose."
        return
    if isinstance(artifact.config, OpenvinoProgram):
        if images:
            raise _UsageError(
                "argument --images: a network of OpenVINO's has one form, and nothing to be compared with"
            )
        loaded = load_model(artifact, LoadOptions(settings.max_image_pixels, settings.allow_code))
        assert loaded.load is not None
        loaded.load()
        yield "A network of OpenVINO's has one form: check the artifact that it was converted from."
        return
    if images and not takes_pictures(artifact.config):
        raise _UsageError("argument --images: the model takes more than a picture: put a sample into warmup.json")
    print("loading and converting takes some seconds ...", file=sys.stderr, flush=True)
    # Imported here: it has torch compute in one thread, and keep its memory, as a worker's does.
    from pierhead_server.forkserver import settle_process

    settle_process()
    gc.enable()
    bound_pillow(settings.max_image_pixels)
    with TemporaryDirectory(prefix="pierhead-check-") as temporary:
        yield from report(artifact, images, settings, Path(temporary))


def takes_pictures(config: ModelConfig) -> bool:
    """Whether an instance is a picture and nothing more."""
    if isinstance(config, CustomPredictor):
        return False
    if isinstance(config, TorchvisionModel) or config.inputs is None:
        return True
    return len(config.inputs) == 1 and isinstance(config.inputs[0], ImageInput)


def report(artifact: Artifact, images: Path | None, settings: Settings, temporary: Path) -> Iterator[str]:
    """The same of an artifact without code; forms are made in an empty folder. Raises ArtifactInvalidError."""
    config = artifact.config
    assert not isinstance(config, CustomPredictor)
    loaded = load_model(artifact, LoadOptions(settings.max_image_pixels, compiled_dir=temporary / "cache"))
    assert loaded.order is not None  # the cache is empty, and there is no GPU in the options
    answered = answer_sample(loaded.model)
    rows = answered if artifact.sample else ()
    pictures = Pictures(images, loaded.model, settings.max_request_bytes) if images else None
    if pictures and not any(True for _ in islice(pictures, 1)):
        raise _UsageError(f"argument --images: no image that the server reads is in {images}")
    source = loaded.order.load()
    checked = compare(
        source,
        make_networks(source, temporary),
        map(to_batch, chain(rows, pictures or ())),
        has_classes=config.labels is not None or isinstance(config, TorchvisionModel),
    )
    yield f"{artifact.folder}: {config.format}, precision {config.precision}"
    yield _tell_samples(checked, len(rows), pictures)
    yield from ("", *make_table(checked), "", advise(checked))


def answer_sample(model: Model) -> Sequence[Any]:
    """The rows of a model's sample, which it has answered. Raises ArtifactInvalidError."""
    assert model.sample is not None
    try:
        prepared = model.prepare(parse(Call("probe", model.sample.body), Limits(sys.maxsize), model.signature))
        (computed,) = model.compute([prepared])
        if isinstance(computed.outcome, ApiError):
            raise computed.outcome
    except ApiError as error:
        raise ArtifactInvalidError(model.sample.explain(str(error))) from None
    rows: Sequence[Any] = prepared.rows
    return rows


@dataclass
class Pictures:
    """A folder's images as the server reads a client's; it may be walked through more than once."""

    folder: Path
    model: Model
    most_bytes: int  # of a file
    taken: int = 0
    skipped: list[str] = field(default_factory=list)  # files that no client could send as an image

    def __iter__(self) -> Iterator[Any]:
        """The model's rows, one an image, in the order of the files' names."""
        self.taken, self.skipped = 0, []
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            try:
                if path.stat().st_size > self.most_bytes:
                    raise InvalidArgumentError("too large")
                (row,) = self.model.prepare(Request([path.read_bytes()], {})).rows
            except (InvalidArgumentError, OSError):
                self.skipped.append(str(path.relative_to(self.folder)))
                continue
            self.taken += 1
            yield row

    def __str__(self) -> str:
        told = f"{self.taken} images of {self.folder}"
        if not self.skipped:
            return told
        more = len(self.skipped) - _MOST_NAMED
        return f"{told}; skipped: {', '.join(self.skipped[:_MOST_NAMED])}{f' and {more} more' if more > 0 else ''}"


def _tell_samples(checked: Checked, own: int, pictures: Pictures | None) -> str:
    parts = [f"{own} of {WARMUP_FILE}"] if own else []
    if pictures:
        parts.append(str(pictures))
    if parts:
        return f"samples: {', '.join(parts)}"
    told = f"samples: {checked.samples} synthetic ones, since there are no others"
    return f"{told}: they tell little about the top class" if checked.has_classes else told


def to_batch(row: Any) -> Batch:
    """A batch of one row: a classifier's is a picture, a program's has an array for each input."""
    return [row[None]] if isinstance(row, np.ndarray) else [np.asarray(array)[None] for array in row]


# --- the forms ---


def make_networks(source: "Source", folder: Path) -> dict[Precision, Network | Missing]:
    """The compiled form in each precision, as the server would make it, or why it would not."""
    from pierhead_server.converting import convert_source

    try:
        conversion = convert_source(lambda: source)
    except ConversionError as error:
        return {precision: Missing(str(error)) for precision in get_args(Precision)}
    return {precision: _make_network(conversion, precision, folder / precision) for precision in get_args(Precision)}


def _make_network(conversion: "Conversion", precision: Precision, entry: Path) -> Network | Missing:
    from pierhead_server.converted import has_arithmetic
    from pierhead_server.converting import write_entry

    if not has_arithmetic(precision):
        return Missing("this CPU has no arithmetic for it")
    entry.mkdir()
    try:
        write_entry(entry, conversion, precision)
        network = Network(entry)
        network.load()
    except ConversionError as error:
        return Missing(str(error))
    except RuntimeError as error:  # OpenVINO has no closer name for what it refuses
        return Missing(f"OpenVINO refuses it: {' '.join(str(error).split())[-_MOST_CHARACTERS:]}")
    return network


def compare(
    source: "Source", networks: Mapping[Precision, Network | Missing], samples: Iterable[Batch], *, has_classes: bool
) -> Checked:
    """What each form makes of the samples, or of the source's synthetic ones if there are none, and how fast it is."""
    agreements = {precision: Agreement(has_classes) for precision in networks}
    own, example, count = True, None, 0
    for batch in samples:
        example = batch if example is None else example
        count += 1
        _add(agreements, networks, source, batch)
    if example is None:
        own, example = False, source.batches[0]
        for batch in source.batches:
            count += len(batch[0])
            _add(agreements, networks, source, batch)
    return Checked(
        first=measure_speed(source.compute, example),
        rows={
            precision: network
            if isinstance(network, Missing)
            else Measured(agreements[precision], measure_speed(network, example))
            for precision, network in networks.items()
        },
        samples=count,
        are_own=own,
        has_classes=has_classes,
    )


def _add(
    agreements: Mapping[Precision, Agreement],
    networks: Mapping[Precision, Network | Missing],
    source: "Source",
    batch: Batch,
) -> None:
    expected = source.compute(batch)
    for precision, network in networks.items():
        if isinstance(network, Network):
            agreements[precision].add(network(batch), expected, source.least)


def measure_speed(form: Form, example: Batch) -> Speed:
    """Of batches that hold the example's first row again and again."""
    from pierhead_server.converting import BATCHES, choose_batch, measure

    took = {count: measure(form, [np.repeat(array[:1], count, axis=0) for array in example]) for count in BATCHES}
    return Speed(took, choose_batch(took))
