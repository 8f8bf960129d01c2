"""A classifier on an NVIDIA GPU: one copy a batch out of pinned memory, and one launch, of a captured graph.

Nothing of CUDA happens at import, nor in the fork server: a process that has used a GPU cannot be forked.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from pierhead_server.accelerator import copy_to
from pierhead_server.classifier import Confidences
from pierhead_server.eager import ClassifierModule
from pierhead_server.images import Pixels
from pierhead_server.messages import Form

logger = logging.getLogger(__name__)

# A graph has one batch size; what lies between two of them is filled up. So at most half of a batch is in vain.
SIZES = (1, 2, 4, 8, 16, 32)
_WARM_UPS = 3  # before a graph is captured, as torch asks for: libraries allocate on their first calls

Graph = Callable[[], torch.Tensor]  # computes what is in its staging buffer; float32 [size, classes], on the CPU


class Bucket:
    """One batch size: the buffer that pictures are put into, and what computes them."""

    def __init__(self, staging: torch.Tensor, graph: Graph) -> None:
        self._pictures = staging.numpy()  # uint8 [size, side, side, 3], the same memory
        self._graph = graph

    def __call__(self, pictures: Sequence[Pixels]) -> Confidences:
        """At most as many pictures as its size."""
        np.stack(pictures, out=self._pictures[: len(pictures)])
        return self._graph()[: len(pictures)].numpy().copy()


class BucketRunner:
    """Batches of a few fixed sizes."""

    form: Form = "cuda"

    def __init__(self, buckets: dict[int, Bucket]) -> None:
        self._buckets = buckets
        self.batch = max(buckets)

    def __call__(self, pictures: Sequence[Pixels]) -> Confidences:
        """Any number of pictures."""
        parts = [self._buckets[size](pictures[start:stop]) for start, stop, size in plan(len(pictures), self._buckets)]
        return np.concatenate(parts)


def plan(count: int, sizes: Sequence[int] | dict[int, Bucket]) -> Iterator[tuple[int, int, int]]:
    """Which pictures go together, as (start, stop, the smallest size that holds them)."""
    largest = max(sizes)
    for start in range(0, count, largest):
        stop = min(count, start + largest)
        yield start, stop, min(size for size in sizes if size >= stop - start)


def make_cuda_runner(module: ClassifierModule, device: torch.device, side: int) -> BucketRunner:
    """Put a copy of the classifier on a GPU and capture a graph for each size; the one that is given stays as it is.

    Where it cannot be captured, such as one that looks at its numbers to decide how to go on, operators are launched
    one after another.
    """
    # TF32: the tensor cores' float32, with 10 bits of mantissa; a confidence moves by less than 0.001.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    placed = copy_to(module, device)
    assert isinstance(placed, ClassifierModule)
    placed.network.to(placed.dtype)
    placed = placed.to(memory_format=torch.channels_last)
    try:
        return BucketRunner({size: _capture(placed, device, size, side) for size in SIZES})
    except RuntimeError as error:
        logger.warning("the model cannot be captured as a graph, its operators are launched one by one: %s", error)
    return BucketRunner({size: make_bucket(placed, device, size, side) for size in SIZES})


def make_bucket(module: ClassifierModule, device: torch.device, size: int, side: int) -> Bucket:
    """One size, computed operator by operator."""
    staging = torch.zeros(size, side, side, 3, dtype=torch.uint8)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            computed: torch.Tensor = module(staging.to(device).permute(0, 3, 1, 2))
            return computed.cpu()

    return Bucket(staging, run)


def _capture(module: ClassifierModule, device: torch.device, size: int, side: int) -> Bucket:
    staging = torch.zeros(size, side, side, 3, dtype=torch.uint8, pin_memory=True)
    given = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            module(given.permute(0, 3, 1, 2))
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            computed = module(given.permute(0, 3, 1, 2))
    answer = torch.empty(computed.shape, dtype=computed.dtype, pin_memory=True)

    def run() -> torch.Tensor:
        with torch.cuda.stream(stream):
            given.copy_(staging, non_blocking=True)
            graph.replay()
            answer.copy_(computed, non_blocking=True)
        stream.synchronize()
        return answer

    return Bucket(staging, run)
