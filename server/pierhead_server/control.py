"""What the listener and the fork server say to each other: one msgpack message a packet, with descriptors beside it."""

import array
import asyncio
import signal
import socket
from collections.abc import Sequence

import msgspec

from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.signature import Signature

_MOST_BYTES = 64 * 1024
_MOST_DESCRIPTORS = 1


class Expect(msgspec.Struct, frozen=True, tag=True):
    """To the fork server, if at all before Load: a model of torch's is being fetched."""


class Load(msgspec.Struct, frozen=True, tag=True):
    """To the fork server: what to serve, and how."""

    folder: str  # of the artifact
    served: ServedModel
    limits: Limits
    max_image_pixels: int
    allow_code: bool = False
    compiled_dir: str | None = None  # None: nothing is compiled
    device: str = "cpu"
    workers: int = 1  # that will be forked
    worker_memory_bytes: int | None = None  # what each may take beside the model; None: its share of the container's
    log_level: str = "info"
    log_json: bool = True


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To the fork server, with a descriptor: a worker shall answer on that connection."""

    worker: int
    place: int  # which of the workers' GPUs or CPUs it computes on


class Kill(msgspec.Struct, frozen=True, tag=True):
    """To the fork server: a worker that does not come back."""

    worker: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the fork server: the model is loaded and has answered."""

    form: str
    batch: int  # how many requests are best computed together
    signature: Signature
    slow_start: bool = False  # whether workers take the model to a GPU, or load it each for itself


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From the fork server, its last: a StartupError."""

    reason: str
    message: str


class NotFormed(msgspec.Struct, frozen=True, tag=True):
    """From the fork server: why there will be no faster form."""

    reason: str


class Formed(msgspec.Struct, frozen=True, tag=True):
    """From the fork server: workers forked from now on have another form."""

    form: str
    batch: int


class Died(msgspec.Struct, frozen=True, tag=True):
    """From the fork server: how a worker ended."""

    worker: int
    how: str
    words: str = ""  # its last


class Handover(msgspec.Struct, frozen=True):
    """From a fork server to the one that takes its place in the same process; descriptors are open in both."""

    load: Load
    announced: bool  # whether the listener knows of the model
    made_anew: bool
    children: list[tuple[int, int, int, int]]  # number, pid, pidfd, and what its words are read from
    share: int | None = None


ToForkServer = Expect | Load | Fork | Kill
FromForkServer = Ready | Failed | Formed | NotFormed | Died

_TO: msgspec.msgpack.Decoder[ToForkServer] = msgspec.msgpack.Decoder(ToForkServer)
_FROM: msgspec.msgpack.Decoder[FromForkServer] = msgspec.msgpack.Decoder(FromForkServer)


def send(channel: socket.socket, message: ToForkServer | FromForkServer, descriptors: Sequence[int] = ()) -> None:
    """Send one message; a peer that is gone is its own news."""
    data = [msgspec.msgpack.encode(message)]
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        channel.sendmsg(data, ancillary)
    except (BrokenPipeError, ConnectionResetError):
        return


def receive_command(channel: socket.socket) -> tuple[ToForkServer | None, list[int]]:
    """The fork server's next command and its descriptors; None when the listener is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, _MOST_DESCRIPTORS)
    except ConnectionResetError:  # it left unread what this process said
        return None, []
    return (_TO.decode(data) if data else None), list(descriptors)


async def receive_event(channel: socket.socket) -> FromForkServer | None:
    """The listener's next event; None when the fork server is gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(channel, _MOST_BYTES)
    except ConnectionResetError:
        return None
    return _FROM.decode(data) if data else None


def describe_exit(code: int) -> str:
    """How a process ended, in a person's words; `code` is Python's, negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    causes = {"SIGKILL": "most likely out of memory", "SIGALRM": "it took too long"}
    return f"{name}: {causes[name]}" if name in causes else name
