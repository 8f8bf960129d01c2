"""Starts the fork server. Before anything else is imported: its own imports take as long as the listener's."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FORK_SERVER = (sys.executable, "-m", "pierhead_server.forkserver")


@dataclass(frozen=True)
class Launched:
    """A fork server that begins to import what it needs, and this end of the channel to it."""

    process: "subprocess.Popen[bytes]"
    channel: socket.socket


def make_channel() -> tuple[socket.socket, socket.socket]:
    """The listener's end and the fork server's; each send is one receive on the other side."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def launch(command: Sequence[str] = FORK_SERVER) -> Launched:
    """Start it; it ends when the channel is closed."""
    ours, theirs = make_channel()
    with theirs:
        process = subprocess.Popen(
            [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    ours.setblocking(False)
    return Launched(process, ours)
