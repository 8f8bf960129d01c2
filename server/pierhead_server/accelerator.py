"""Take a GPU in a worker. Not in the fork server: a process that has used a GPU cannot be forked."""

import copy
import ctypes
from typing import Protocol, runtime_checkable

import torch

from pierhead_server.errors import DriverTooOldError

_LIBCUDA = "libcuda.so.1"  # the driver's, which the container gets from its node


def take_device(kind: str, place: int) -> torch.device:
    """The device for a worker's place, made this thread's own; several workers may share one.

    Raises DriverTooOldError, and RuntimeError where torch finds no GPU.
    """
    if kind != "cuda":
        return torch.device(kind, place)
    check_driver(torch.version.cuda, read_driver_version())
    count = torch.cuda.device_count()
    if not count:
        raise RuntimeError("torch finds no GPU: is the NVIDIA container runtime there?")
    device = torch.device(kind, place % count)
    enter_device(device)
    return device


def enter_device(device: torch.device) -> None:
    """Make it the current one of this thread: each has its own, and begins with the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def read_driver_version() -> int | None:
    """The newest CUDA that the node's driver knows, as 1000 x major + 10 x minor; None where there is no driver."""
    try:
        library = ctypes.CDLL(_LIBCUDA)
    except OSError:
        return None
    version = ctypes.c_int()
    failed = library.cuDriverGetVersion(ctypes.byref(version))
    return None if failed else version.value


def check_driver(cuda: str | None, driver: int | None) -> None:
    """Whether the driver runs programs of torch's CUDA: any driver of its major version does.

    Raises DriverTooOldError.
    """
    if cuda is None or driver is None:
        return  # torch says what is missing
    needed = int(cuda.partition(".")[0])
    if driver // 1000 < needed:
        raise DriverTooOldError(
            f"the node's NVIDIA driver knows CUDA {driver // 1000}.{driver % 1000 // 10}, and this server needs "
            f"CUDA {needed}: install a newer driver, or set PIERHEAD_DEVICE=cpu"
        )


@runtime_checkable
class Program(Protocol):
    """A program whose operators name devices: ExportedModule, whose import takes as long as torch's."""

    def copy_to(self, device: torch.device) -> torch.nn.Module:
        """The same on another device."""
        ...


def copy_to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The module on another device; what is given stays whole where it is, whatever goes wrong.

    Weights are copied to the device alone. Of a program of torch.export the devices are exchanged, too, which are
    written into its operators; it is in float32 again.
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        # Moving exchanges a parameter's data in place: so it is another parameter, of the same data.
        memo[id(parameter)] = torch.nn.Parameter(parameter.data, requires_grad=False)
    for part in module.modules():
        if isinstance(part, Program):
            memo[id(part)] = part.copy_to(device)
    return copy.deepcopy(module, memo).to(device)
