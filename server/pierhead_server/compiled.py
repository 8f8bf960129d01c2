"""The compiled form of a classifier: AOTInductor packages, made once, kept in a folder, checked before they are used.

An entry of the cache is `<cache>/<key>/`: `form.json`, `check.npy` (what the quick form makes of synthetic pictures)
and one package for each batch size that pays. The key covers everything that decides the machine code: the artifact,
torch, the CPU. An entry is machine code: whoever can write into the cache can run code in the server.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pierhead_server.classifier import (
    ClassifierModule,
    Confidences,
    EagerRunner,
    measure_drift,
    synthetic_pictures,
    to_batch,
)
from pierhead_server.images import Pixels
from pierhead_server.messages import Form

logger = logging.getLogger(__name__)

_VERSION = 2  # of what an entry holds
_BATCHES = (1, 4, 8)  # beyond 8 no CPU was seen to gain
_PAYS = 0.96  # of the time that a picture takes in the next smaller size; a larger one makes callers wait for longer
_TOLERANCE = 2e-3  # of a confidence; the two forms add up in another order


class CompiledForm(msgspec.Struct, frozen=True):
    """`form.json`."""

    batches: tuple[int, ...]  # a package each, 1 among them
    milliseconds: dict[int, float]  # for one picture, by batch size; measured where it was compiled


class CompileError(Exception):
    """There will be no compiled form; the message says why. The quick form goes on."""


def compute_key(*, weights: Path, model: str) -> str:
    """The name of an entry: 32 hexadecimal digits over the weights, what `model` says of them, torch and the CPU."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    parts = [_VERSION, digest, model, torch.__version__, _describe_cpu()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _describe_cpu() -> str:
    """The features that a compiler for this very CPU may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    kept = {name.strip(): " ".join(sorted(value.split())) for name, value in facts.items()}
    names = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")
    return json.dumps([os.uname().machine, *(kept.get(name, "") for name in names)])


class _Package:
    """A package for one batch size: what `torch._inductor.aoti_load_package` gives, less seconds of imports.

    That function imports all of torch's compiler, and at each call reads how the arguments nest; here there is one
    tensor in and one out.
    """

    def __init__(self, path: Path) -> None:
        run_single_threaded, runners, device = True, 1, -1
        # It unpacks the package and removes that at its end, which a process that is killed never comes to. What is
        # loaded stays when its file is gone.
        with tempfile.TemporaryDirectory(prefix="pierhead-") as folder, _variable("TMPDIR", folder):
            self._loader = torch._C._aoti.AOTIModelPackageLoader(
                str(path), "model", run_single_threaded, runners, device
            )

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        computed: torch.Tensor = self._loader.boxed_run([pictures])[0]
        return computed


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """This process's environment with another value meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class CompiledRunner:
    """AOTInductor packages for one or two batch sizes; what does not fill a batch is run one by one."""

    form: Form = "compiled"

    def __init__(self, entry: Path) -> None:
        described = msgspec.json.decode((entry / "form.json").read_bytes(), type=CompiledForm)
        self._run = {batch: _Package(_package(entry, batch)) for batch in described.batches}
        self.batch = max(described.batches)

    def __call__(self, pictures: Sequence[Pixels]) -> Confidences:
        """Any number of pictures."""
        parts, position = [], 0
        while position < len(pictures):
            count = self.batch if len(pictures) - position >= self.batch else 1
            parts.append(self._run[count](to_batch(pictures[position : position + count])))
            position += count
        return torch.cat(parts).numpy() if len(parts) > 1 else parts[0].numpy()


def _package(entry: Path, batch: int) -> Path:
    return entry / f"batch-{batch}.pt2"


def load(entry: Path, *, side: int) -> CompiledRunner:
    """The compiled form of an entry, if it computes what the quick form did. Raises CompileError."""
    try:
        runner = CompiledRunner(entry)
        expected = np.load(entry / "check.npy", allow_pickle=False)
        given = runner(synthetic_pictures(len(expected), side))
    except (OSError, EOFError, RuntimeError, ValueError, AttributeError, msgspec.MsgspecError) as error:
        raise CompileError(f"the compiled form in {entry} cannot be used: {error}") from error
    check(given, expected)
    return runner


def check(given: Confidences, expected: Confidences) -> None:
    """Whether two forms agree. Raises CompileError."""
    try:
        difference = measure_drift(given, expected)
    except ValueError as error:
        raise CompileError(f"the compiled form cannot be used: {error}") from None
    if difference > _TOLERANCE:
        raise CompileError(f"the compiled form differs from the quick one by {difference:.4f}")


@dataclass(frozen=True)
class Order:
    """What to compile, and where to put it."""

    quick: EagerRunner
    side: int  # of the pictures, in pixels
    entry: Path


def make(order: Order) -> None:
    """Compile and keep; waits where another process makes the same. Raises CompileError."""
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise CompileError("there is no C++ compiler (g++): the quick form stays")
    try:
        order.entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(order.entry.with_suffix(".lock")):
            if order.entry.exists() and _is_sound(order):
                return
            # Made beside it and renamed when whole: half an entry never looks like one.
            making = order.entry.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
            try:
                _compile_into(making, order)
                making.rename(order.entry)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    except OSError as error:
        raise CompileError(f"the compiled form cannot be kept in {order.entry.parent}: {error}") from error


def _is_sound(order: Order) -> bool:
    """Whether the entry can be used; one that is spoilt is removed."""
    try:
        load(order.entry, side=order.side)
    except CompileError as error:
        logger.warning("%s: it is made anew", error)
        shutil.rmtree(order.entry)
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile_into(folder: Path, order: Order) -> None:
    folder.mkdir()
    milliseconds = {batch: _compile_batch(folder, order, batch) for batch in _BATCHES}
    best = choose_batch(milliseconds)
    for batch in _BATCHES:
        if batch not in (1, best):
            _package(folder, batch).unlink()
    # One whole batch, and one picture that is left.
    expected = order.quick(synthetic_pictures(best + 1, order.side))
    np.save(folder / "check.npy", expected, allow_pickle=False)
    form = CompiledForm(tuple(sorted({1, best})), milliseconds)
    (folder / "form.json").write_bytes(msgspec.json.encode(form))
    load(folder, side=order.side)


def _compile_batch(folder: Path, order: Order, batch: int) -> float:
    """Compile for one batch size; milliseconds for a picture."""
    begun = time.monotonic()
    _compile(order.quick.module, batch, order.side, _package(folder, batch))
    milliseconds = _measure(_package(folder, batch), synthetic_pictures(batch, order.side))
    seconds = time.monotonic() - begun
    logger.info("compiled for %d pictures in %.0f s: %.1f ms a picture", batch, seconds, milliseconds)
    return milliseconds


def choose_batch(milliseconds: Mapping[int, float]) -> int:
    """The batch size to prefer, by what a picture takes in each: a larger one only where it pays."""
    best = 1
    for batch in sorted(milliseconds):
        if milliseconds[batch] < _PAYS * milliseconds[best]:
            best = batch
    return best


def _compile(module: ClassifierModule, batch: int, side: int, package: Path) -> None:
    example = to_batch(synthetic_pictures(batch, side))
    # Freezing folds the weights into the machine code, laid out as its kernels want them. One thread compiles: this
    # process was forked, and shares the machine with those that serve.
    options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own internals
            program = torch.export.export(module, (example,))
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
    except Exception as error:  # the compiler raises whatever a model makes it trip over
        raise CompileError(f"the model cannot be compiled: {type(error).__name__}: {str(error)[:300]}") from error


def _measure(package: Path, pictures: Sequence[Pixels]) -> float:
    """Milliseconds of CPU for one picture; the best of several, since others compute meanwhile."""
    run, batch = _Package(package), to_batch(pictures)
    best = float("inf")
    for _ in range(12):
        start = time.thread_time()
        run(batch)
        best = min(best, time.thread_time() - start)
    return best * 1000 / len(pictures)
