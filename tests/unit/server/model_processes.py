"""What a model process may do, good and bad, without a model: the bytes of the first picture say what."""

import os
import signal
import time
from pathlib import Path

from pierhead_server.errors import ArtifactInvalidError, InvalidArgumentError
from pierhead_server.workers import Answer, Loaded, receive, send

DIE, REFUSE, WAIT_FOR = b"die", b"refuse", b"wait for "


def obedient(connection):
    """Loads at once, then does what it is told."""
    stream = connection.makefile("rb")
    receive(stream)
    send(connection, Loaded())
    while request := receive(stream):
        send(connection, _obey(request.pictures[0].data))


def _obey(told):
    if told == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if told == REFUSE:
        return InvalidArgumentError("instances[0].content: refused")
    while told.startswith(WAIT_FOR) and not Path(os.fsdecode(told.removeprefix(WAIT_FOR))).exists():
        time.sleep(0.005)
    return Answer([[(os.getpid(), 1.0)]], 0.0)


def misfit(connection):
    """Finds the artifact wrong."""
    receive(connection.makefile("rb"))
    send(connection, ArtifactInvalidError("weights: do not fit"))


def dies_loading(connection):
    """Is killed while it loads, as for want of memory."""
    receive(connection.makefile("rb"))
    os.kill(os.getpid(), signal.SIGKILL)
