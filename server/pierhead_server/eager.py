"""The first form of a model: torch as it is, operator by operator, there as soon as the weights are."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pierhead_server.accelerator import copy_to
from pierhead_server.artifact import Sample
from pierhead_server.classifier import Confidences, Runner
from pierhead_server.comparing import synthetic_pictures
from pierhead_server.config import Input, Preprocessing, TensorInput
from pierhead_server.errors import ArtifactInvalidError, InternalError
from pierhead_server.images import Pixels
from pierhead_server.messages import Form
from pierhead_server.modules import first_line
from pierhead_server.program import Array, TensorProgram, make_zeros
from pierhead_server.tensors import TensorSpec

_EAGER_BATCH = 8  # beyond that a CPU gains nothing, and memory grows
_GPU_BATCH = 32  # requests; each by itself it would launch all its kernels for one row


class ClassifierModule(torch.nn.Module):
    """Bytes to confidences: normalises uint8 [n, 3, side, side], runs the network, and activates its outputs."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: torch.nn.Module, preprocessing: Preprocessing, activation: str, precision: str) -> None:
        super().__init__()
        self.network = network
        self.activation = activation
        self.dtype = getattr(torch, precision)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)
        network.to(self.dtype)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Float32 [n, classes]."""
        # (pictures / 255 - mean) / std, in one step: three take twice as long.
        normalised = torch.addcmul(self.offset, pictures.float(), self.scale)
        given: object = self.network(normalised.to(self.dtype))
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"it gives a {type(given).__name__}, not one tensor")
        outputs = given.float()
        if self.activation == "softmax":
            return outputs.softmax(dim=1)
        return outputs.sigmoid() if self.activation == "sigmoid" else outputs


class EagerRunner:
    """Torch as it is, operator by operator: the quick form, there as soon as the weights are."""

    form: Form = "quick"
    batch = 1

    def __init__(self, module: ClassifierModule) -> None:
        self.module = module.to(memory_format=torch.channels_last)

    def __call__(self, pictures: Sequence[Pixels]) -> Confidences:
        """In chunks of bounded size."""
        with torch.inference_mode():
            chunks = [
                self.module(to_batch(pictures[start : start + _EAGER_BATCH]))
                for start in range(0, len(pictures), _EAGER_BATCH)
            ]
            return torch.cat(chunks).numpy()


def to_batch(pictures: Sequence[Pixels]) -> torch.Tensor:
    """Uint8 [n, 3, side, side], channels last in memory: the pictures as they lie."""
    stacked = pictures[0][None] if len(pictures) == 1 else np.stack(pictures)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def check_classes(runner: Runner, side: int, classes: int) -> None:
    """Run synthetic pictures, and check what the model makes of them. Raises ArtifactInvalidError."""
    for count in (1, 2):
        check_outputs(runner, synthetic_pictures(count, side), classes)


def check_outputs(runner: Runner, pictures: Sequence[Pixels], classes: int) -> Confidences:
    """What the runner makes of pictures, if it is [pictures, classes]. Raises ArtifactInvalidError."""
    count, side = len(pictures), pictures[0].shape[0]
    try:
        outputs: object = runner(pictures)
    except Exception as error:  # a model is a stranger's program: it may raise anything, and it is the artifact's
        hint = "" if count == 1 else ": export it with a dynamic batch dimension"
        raise ArtifactInvalidError(
            f"the model refuses a float32 input of {count}x3x{side}x{side}{hint}: {first_line(error)}"
        ) from error
    assert isinstance(outputs, np.ndarray)
    if outputs.shape != (count, classes):
        raise ArtifactInvalidError(
            f"labels: {classes} names, but the model gives {outputs.shape} for a batch of {count}"
        )
    return outputs


class EagerProgram:
    """A program of named tensors, on the CPU or on a GPU."""

    form: Form = "quick"
    batch = 1

    def __init__(self, module: torch.nn.Module, outputs: Sequence[str] | None) -> None:
        self.module = module
        self._outputs = outputs
        self._device = torch.device("cpu")

    def __call__(self, batch: Sequence[Array]) -> dict[str, Array]:
        """Its outputs by their names, for one array an input with the batch first."""
        with torch.inference_mode():
            given: object = self.module(*(torch.from_numpy(array).to(self._device) for array in batch))
        return {name: _to_numpy(tensor) for name, tensor in self.name(given).items()}

    def copy_to(self, device: torch.device) -> "EagerProgram":
        """The same on a GPU; this one stays as it is."""
        moved = EagerProgram(copy_to(self.module, device), self._outputs)
        moved._device, moved.form, moved.batch = device, "cuda", _GPU_BATCH
        return moved

    def name(self, given: object) -> dict[str, torch.Tensor]:
        """What the program gave, by the outputs' names. Raises InternalError for what is no tensor."""
        if isinstance(given, Mapping):
            named = {str(name): tensor for name, tensor in given.items()}
        else:
            tensors = list(given) if isinstance(given, tuple | list) else [given]
            names = self._outputs or (
                ["output"] if len(tensors) == 1 else [f"output_{number}" for number in range(len(tensors))]
            )
            if len(names) != len(tensors):
                raise InternalError(f"outputs: {len(names)} names, but the program gives {len(tensors)}")
            named = dict(zip(names, tensors, strict=True))
        for name, tensor in named.items():
            if not isinstance(tensor, torch.Tensor):
                raise InternalError(f"output {name} is a {type(tensor).__name__}, not a tensor")
        return named


def make_program(
    module: torch.nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[str] | None,
    *,
    max_image_pixels: int,
    sample: Sample | None = None,
) -> TensorProgram:
    """A program that was seen to run. Raises ArtifactInvalidError."""
    runner = EagerProgram(module, outputs)
    return TensorProgram(runner, inputs, probe(runner, inputs), max_image_pixels=max_image_pixels, sample=sample)


def probe(runner: EagerProgram, inputs: Sequence[Input]) -> tuple[TensorSpec, ...]:
    """What the program gives, seen by running it on zeros. Raises ArtifactInvalidError."""
    any_size = any(-1 in entry.shape for entry in inputs if isinstance(entry, TensorInput))
    named: dict[str, Array] = {}
    for count in (1, 2):
        try:
            named = runner([make_zeros(entry, count) for entry in inputs])
            for name, array in named.items():
                if array.shape[:1] != (count,):
                    raise InternalError(f"output {name} has shape {array.shape} for a batch of {count}")
        except Exception as error:  # a model is a stranger's program, and what it raises is the artifact's
            shapes = ", ".join(f"{entry.name} {list(make_zeros(entry, count).shape)}" for entry in inputs)
            hint = "" if count == 1 else ": export it with a dynamic batch dimension"
            raise ArtifactInvalidError(f"the program refuses {shapes}{hint}: {first_line(error)}") from error
    return tuple(
        TensorSpec(name, array.dtype.name, tuple(-1 if any_size else size for size in array.shape[1:]))
        for name, array in named.items()
    )


def _to_numpy(tensor: torch.Tensor) -> Array:
    # numpy has no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().contiguous().numpy()
