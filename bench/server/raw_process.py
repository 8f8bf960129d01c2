"""One process of the raw loop: pictures to top classes by plain PyTorch, with nothing between. Run as a program.

`python -m bench.server.raw_process MODEL ARTIFACT DEVICE SOURCE PACKAGE... -- JPEG...` reads an Order as a line of JSON
from standard input, obeys, writes a Report as a line to standard output, and so on until standard input ends.
With `memory` as SOURCE the pictures are read once, with `disk` each time that one is computed.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from bench.server.forms import Order, Precision, Report, parse_batch
from bench.server.networks import Classifier, load_classifier, make_example
from bench.server.openvino_network import make_openvino
from bench.server.preprocessing import CROP, preprocess

TOP = 5
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """What is run, on what."""

    model: str
    artifact: Path
    device: str
    packages: dict[int, Path]  # by batch
    jpegs: Iterable[bytes]


@dataclass(frozen=True)
class Files:
    """Pictures that are read each time."""

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[bytes]:
        return (path.read_bytes() for path in self.paths)


def make_network(form: str, setting: Setting) -> Network:
    """The network in one of the forms that PyTorch offers, or as OpenVINO's."""
    if form.startswith("aoti"):
        package = setting.packages[parse_batch(form)]
        # The caller is one thread: no lock, no copies of what the runs share.
        return torch._inductor.aoti_load_package(str(package), run_single_threaded=True)
    if form.startswith("openvino"):
        precision = Precision.bfloat16 if Precision.bfloat16 in form else Precision.float32
        return make_openvino(setting.model, setting.artifact, precision)
    classifier = load_classifier(setting.model, setting.artifact).to(setting.device)
    if form.startswith("eager"):
        return classifier
    classifier = classifier.to(memory_format=torch.channels_last)
    if form.startswith("channels-last"):
        return classifier
    if form.startswith("graphs"):
        return torch.compile(classifier, mode="reduce-overhead")  # in CUDA graphs
    return make_frozen(classifier, parse_batch(form), setting.device)


def make_frozen(classifier: Classifier, batch: int, device: str) -> Network:
    """TorchScript, its weights made constants and its layers merged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it is here to be compared with
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            classifier, make_example(batch).to(device)
        )
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced.eval()))


class CpuLoop:
    """A core's loop: decode a batch, compute it, rank it."""

    def __init__(self, network: Network, batch: int, jpegs: Iterable[bytes]) -> None:
        self._network = network
        self._batch = batch
        self._jpegs = repeat(jpegs)
        self._pictures = torch.empty((batch, 3, CROP, CROP), dtype=torch.uint8, memory_format=torch.channels_last)

    def step(self) -> list[list[int]]:
        """One batch; the best classes of each picture."""
        if self._batch == 1:
            pictures = preprocess(next(self._jpegs))
        else:
            pictures = self._pictures
            for row in range(self._batch):
                pictures[row] = preprocess(next(self._jpegs))[0]
        return self._network(pictures).topk(TOP).indices.tolist()


class DeviceLoop:
    """A GPU's loop: all cores decode the next batches into pinned memory while the GPU computes this one."""

    AHEAD = 3

    def __init__(self, network: Network, batch: int, jpegs: Iterable[bytes], device: str, threads: int) -> None:
        self._network = network
        self._batch = batch
        self._device = device
        self._jpegs = repeat(jpegs)
        self._pool = ThreadPoolExecutor(threads)  # the decoder and the scaling let go of the GIL
        self._decoded = self._decode() if batch > 1 else self._decode_here()

    def step(self) -> list[list[int]]:
        """One batch; the best classes of each picture."""
        on_device = next(self._decoded).to(self._device, non_blocking=True)
        return self._network(on_device).topk(TOP).indices.tolist()

    def _empty(self) -> Tensor:
        shape = (self._batch, 3, CROP, CROP)
        return torch.empty(
            shape, dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=self._device == "cuda"
        )

    def _decode_here(self) -> Iterator[Tensor]:
        pictures = self._empty()
        while True:
            pictures.copy_(preprocess(next(self._jpegs)))
            yield pictures

    def _decode(self) -> Iterator[Tensor]:
        def fill(row: Tensor, jpeg: bytes) -> None:
            row.copy_(preprocess(jpeg)[0])

        buffers = itertools.cycle([self._empty() for _ in range(self.AHEAD + 1)])
        under_way: list[tuple[Tensor, list[Future[None]]]] = []
        while True:
            while len(under_way) < self.AHEAD:
                pictures = next(buffers)
                jobs = [self._pool.submit(fill, row, jpeg) for row, jpeg in zip(pictures, self._jpegs, strict=False)]
                under_way.append((pictures, jobs))
            pictures, jobs = under_way.pop(0)
            for job in jobs:
                job.result()
            yield pictures


Loop = CpuLoop | DeviceLoop


def run(loop: Loop, batch: int, order: Order) -> Report:
    """Batches from `order.start` on, a time that other processes wait for, too, until the seconds are over."""
    while time.perf_counter() < order.start:  # warm up until then; no process computes alone afterwards
        loop.step()
    latencies = []
    cpu, begin = time.process_time(), time.perf_counter()
    before = begin
    while before - begin < order.seconds:
        loop.step()
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
    return Report(
        pictures=batch * len(latencies),
        seconds=before - begin,
        cpu_seconds=time.process_time() - cpu,
        latencies=latencies,
    )


def repeat(jpegs: Iterable[bytes]) -> Iterator[bytes]:
    """The pictures again and again."""
    return itertools.chain.from_iterable(itertools.repeat(jpegs))


def rank(network: Network, jpegs: Iterable[bytes], device: str) -> Report:
    """The best classes of each picture and how sure the network is of them."""
    classes, confidences = [], []
    for jpeg in jpegs:
        best = network(preprocess(jpeg).to(device))[0].topk(TOP)
        classes.append([int(index) for index in best.indices])
        confidences.append([float(value) for value in best.values])
    return Report(classes=classes, confidences=confidences)


class Process:
    """Obeys orders; keeps what it has loaded."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._loops: dict[str, Loop] = {}

    @torch.inference_mode()
    def obey(self, order: Order) -> Report:
        """Do one order."""
        match order.what:
            case "rank":
                network = make_network("eager b1", self._setting)
                return rank(network, self._setting.jpegs, self._setting.device)
            case "forget":
                self._loops = {form: loop for form, loop in self._loops.items() if form in order.forms}
            case "load":
                for form in order.forms:
                    self._find(form).step()
            case "run":
                (form,) = order.forms
                return run(self._find(form), parse_batch(form), order)
        return Report()

    def _find(self, form: str) -> Loop:
        if form not in self._loops:
            network, batch, jpegs = make_network(form, self._setting), parse_batch(form), self._setting.jpegs
            if self._setting.device == "cpu":
                self._loops[form] = CpuLoop(network, batch, jpegs)
            else:
                self._loops[form] = DeviceLoop(network, batch, jpegs, self._setting.device, self._threads)
        return self._loops[form]


def main(arguments: Sequence[str]) -> None:
    model, artifact, device, source, *rest = arguments
    split = rest.index("--")
    packages = {parse_batch(Path(file).stem): Path(file) for file in rest[:split]}
    files = Files([Path(file) for file in rest[split + 1 :]])
    jpegs = files if source == "disk" else list(files)
    process = Process(Setting(model, Path(artifact), device, packages, jpegs))
    for line in sys.stdin.buffer:
        report = process.obey(msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
