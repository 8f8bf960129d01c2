"""The process that forks: what it says of its children, what they inherit, and how it ends. It holds no model here."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from pierhead_server import forkserver, memory
from pierhead_server.control import (
    Died,
    Expect,
    Failed,
    Fork,
    Formed,
    FromForkServer,
    Kill,
    Load,
    NotFormed,
    Ready,
    describe_exit,
    receive_command,
    receive_event,
    send,
)
from pierhead_server.converted import Order
from pierhead_server.errors import ArtifactInvalidError
from pierhead_server.forkserver import ForkServer
from pierhead_server.launch import make_channel
from pierhead_server.messages import Call, FirstMessage, Hello, Reply, pack
from pierhead_server.messages import read as read_message
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.signature import Signature, TensorSpec

from tests.unit.server.conftest import children, is_alive, wait_until
from tests.unit.server.model_processes import DIE, LEAVE, SAY, SIGNATURE, WAIT_FOR, Obedient

DEADLINE_SECONDS = 30
LOAD = Load("/", ServedModel("", "", "", ""), Limits(1), max_image_pixels=1)
EVENT = msgspec.msgpack.Decoder(FromForkServer)
REPLY = msgspec.msgpack.Decoder(Reply)
FIRST = msgspec.msgpack.Decoder(FirstMessage)


# What a worker settles


@pytest.mark.parametrize(
    ("cpus", "workers", "place", "expected"),
    [
        ({0, 1}, 2, 0, {0}),
        ({0, 1}, 2, 1, {1}),
        ({3, 9, 17}, 3, 1, {9}),
        ({0, 1}, 1, 0, None),  # another worker's neighbour is anybody's
        ({0, 1}, 4, 3, None),
    ],
)
def test_worker_stays_on_its_cpu_where_each_has_one(cpus, workers, place, expected, monkeypatch):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, chosen: kept.append((pid, chosen)))
    forkserver.settle(place, workers)
    assert kept == ([] if expected is None else [(0, expected)])


# The channel


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGKILL, "SIGKILL: most likely out of memory"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGABRT, "SIGABRT"),
        (-signal.SIGALRM, "SIGALRM: it took too long"),
    ],
)
def test_exit_is_described(code, text):
    assert describe_exit(code) == text


COMMANDS = [
    Expect(),
    Load("/f", ServedModel("a", "b", "c", "d"), Limits(3), 4, True, "/cache", "cuda", 2),
    Fork(1, 2),
    Kill(3),
]
EVENTS = [
    Ready("quick", 4, Signature((TensorSpec("x", "float32", (-1, 3)),), ()), slow_start=True),
    Failed("ArtifactInvalid", "weights: do not fit"),
    Formed("compiled", 1),
    NotFormed("the model cannot be converted"),
    Died(1, "SIGKILL", "boom"),
]


@contextlib.contextmanager
def channel():
    one, other = make_channel()
    with one, other:
        yield one, other


def test_commands_arrive_as_they_are_sent():
    with channel() as (ours, theirs):
        for command in COMMANDS:
            send(ours, command)
        assert [receive_command(theirs) for _ in COMMANDS] == [(command, []) for command in COMMANDS]


async def test_events_arrive_as_they_are_sent():
    with channel() as (ours, theirs):
        ours.setblocking(False)
        for event in EVENTS:
            send(theirs, event)
        assert [await receive_event(ours) for _ in EVENTS] == EVENTS
        theirs.close()
        assert await receive_event(ours) is None


async def test_event_is_waited_for():
    with channel() as (ours, theirs):
        ours.setblocking(False)
        waiting = asyncio.create_task(receive_event(ours))
        await asyncio.sleep(0)
        send(theirs, EVENTS[0])
        assert await waiting == EVENTS[0]


def test_descriptor_goes_along():
    with channel() as (ours, theirs), contextlib.closing(os.fdopen(os.open("/dev/null", os.O_RDONLY))) as file:
        send(ours, Fork(0, 0), [file.fileno()])
        command, (descriptor,) = receive_command(theirs)
        try:
            assert command == Fork(0, 0)
            assert os.path.samestat(os.fstat(descriptor), os.fstat(file.fileno()))
        finally:
            os.close(descriptor)


def test_peer_that_is_gone_is_no_error_of_the_sender():
    with channel() as (ours, theirs):
        theirs.close()
        send(ours, Kill(1))
        assert receive_command(ours) == (None, [])


# The process


class Parent:
    """A fork server that a test holds the control of."""

    def __init__(self, *command):
        self.control, theirs = make_channel()
        self.control.settimeout(DEADLINE_SECONDS)
        arguments = [sys.executable, "-m", "tests.unit.server.model_processes", *map(str, command)]
        with theirs:
            descriptor = theirs.fileno()
            self.process = subprocess.Popen([*arguments, str(descriptor)], pass_fds=[descriptor])
        send(self.control, LOAD)
        self.ready = self.receive()

    def receive(self):
        return EVENT.decode(self.control.recv(65536))

    def fork(self, number):
        """A worker's connection, and its pid."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_SECONDS)
        with theirs:
            send(self.control, Fork(number, 0), [theirs.fileno()])
        with ours.makefile("rb") as stream:
            assert isinstance(read_message(stream, FIRST), Hello)
        tell(ours, b"")
        return ours, read_answer(ours)["pid"]

    def end(self):
        self.control.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def begin(*command):
            parent = Parent(*command)
            stack.callback(parent.end)
            return parent

        yield begin


@pytest.fixture
def parent(start):
    return start("obedient")


def tell(connection, told):
    connection.sendall(pack([Call("raw", told)]))


def read_reply(connection):
    with connection.makefile("rb") as stream:
        return read_message(stream, REPLY)


def read_answer(connection):
    return msgspec.json.decode(read_reply(connection).body)


def test_it_says_what_it_loaded(parent):
    assert parent.ready == Ready("quick", 1, SIGNATURE)


def test_worker_answers_on_its_connection(parent):
    connection, pid = parent.fork(7)
    with connection:
        assert pid in children(parent.process.pid)
        tell(connection, b"")
        assert read_answer(connection)["pid"] == pid


@pytest.mark.parametrize(
    ("told", "how", "words"),
    [
        (DIE, "SIGKILL: most likely out of memory", ""),
        (LEAVE, "exit code 1", "SystemExit: 3"),
        (SAY + b"going down", "exit code 3", "going down"),
    ],
)
def test_death_of_a_worker_is_told(capfd, start, told, how, words):
    parent, log = start("obedient"), []
    connection, pid = parent.fork(7)
    with connection:
        tell(connection, told)
        death = parent.receive()
        assert (death.worker, death.how) == (7, how)
        assert death.words.endswith(words)
    assert not Path(f"/proc/{pid}").exists()  # no zombie is left
    # The log has it, too.
    wait_until(lambda: log.append(capfd.readouterr().err) or words in "".join(log))


def test_what_a_worker_said_is_in_the_log_when_the_listener_is_gone(capfd, start):
    parent = start("obedient")
    connection, pid = parent.fork(0)
    with connection:
        os.kill(parent.process.pid, signal.SIGSTOP)
        tell(connection, SAY + b"going down\n")
        # Not until its connection ends: the parent may be stopped while it still holds the worker's end, too.
        wait_until(lambda: not is_alive(pid))
        parent.control.close()
        os.kill(parent.process.pid, signal.SIGCONT)
        assert parent.process.wait(DEADLINE_SECONDS) == 0
    assert "going down" in capfd.readouterr().err


def test_workers_leave_no_descriptor_behind(parent):
    before = count_descriptors(parent)
    for number in range(5):
        connection, _ = parent.fork(number)
        with connection:
            tell(connection, SAY + b"x" * 1000)
            assert parent.receive().words.startswith("x")
    wait_until(lambda: count_descriptors(parent) == before)


def count_descriptors(parent):
    return len(list(Path(f"/proc/{parent.process.pid}/fd").iterdir()))


def test_worker_ends_when_its_connection_does(parent):
    first, second = parent.fork(0)[0], parent.fork(1)[0]
    with second:
        first.close()
        assert parent.receive() == Died(0, "exit code 0")
        tell(second, b"")
        assert read_answer(second)


def test_worker_that_is_stuck_is_killed_on_command(parent, tmp_path):
    (stuck, _), (other, _) = parent.fork(0), parent.fork(1)
    with stuck, other:
        tell(stuck, WAIT_FOR + os.fsencode(tmp_path / "never"))
        send(parent.control, Kill(5))  # is not there
        send(parent.control, Kill(0))
        assert parent.receive() == Died(0, "SIGKILL: most likely out of memory")
        tell(other, b"")
        assert read_answer(other)


def test_end_of_the_listener_ends_all_children(start, tmp_path):
    """One worker waits for calls, one is caught in its model, and a compiler is at work."""
    parent = start("obedient", 1, tmp_path / "never")
    (idle, _), (stuck, _) = parent.fork(0), parent.fork(1)
    with idle, stuck:
        tell(stuck, WAIT_FOR + os.fsencode(tmp_path / "never"))
        wait_until(lambda: len(children(parent.process.pid)) == 3)
        family = children(parent.process.pid)
        parent.control.close()
        assert parent.process.wait(DEADLINE_SECONDS) == 0
        wait_until(lambda: not any(map(is_alive, family)))


def test_children_do_not_keep_what_is_the_parents(start, tmp_path):
    """Or a worker would not notice the end of its connection."""
    parent = start("obedient", 1, tmp_path / "never")
    (first, one), (second, two) = parent.fork(0), parent.fork(1)
    with first, second:
        first.close()
        wait_until(lambda: not is_alive(one))
        tell(second, b"")
        assert read_answer(second)["pid"] == two


def test_children_end_with_their_parent(start, tmp_path):
    parent = start("obedient", 1, tmp_path / "never")
    connection, child = parent.fork(0)
    with connection:
        parent.process.kill()
        assert parent.control.recv(1) == b""
        wait_until(lambda: not is_alive(child))


def test_faster_form_is_told_and_given_to_who_comes_after(start, tmp_path):
    parent = start("obedient", 2, tmp_path / "form")
    assert parent.ready.batch == 2
    with parent.fork(0)[0] as before:
        assert not select.select([parent.control], [], [], 0)[0]
        (tmp_path / "form").touch()
        assert parent.receive() == Formed("compiled", Obedient.FORMED_BATCH)
        with parent.fork(1)[0] as after:
            for connection, form in ((before, "quick"), (after, "compiled")):
                tell(connection, b"")
                assert read_answer(connection)["form"] == form


# What makes the compiled form


@pytest.fixture
def convert(tmp_path):
    """Converts what `load` gives, in a process of its own; how that ended, and what it told."""
    import pierhead_server.converting  # noqa: F401 - as the fork server has torch by then

    def convert(load):
        with channel() as (_, control):
            order = Order(load, tmp_path / "cache" / "0123", "float32")
            server = ForkServer(control, SimpleNamespace(order=order), LOAD)
            pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    server._compile()
                os._exit(0)
            return describe_exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), os.pread(server._reason, 4096, 0)

    return convert


def test_conversion_takes_no_more_memory_than_the_container_has_left(convert, monkeypatch):
    """Where it were killed for that, the whole container would be, and begin anew with the same."""
    limit = memory.read_used() + (512 << 20)
    monkeypatch.setattr(memory, "read_limit", lambda: limit)
    how, told = convert(lambda: bytearray(1 << 30))
    assert (how, told) == ("exit code 0", b"to convert the model takes more memory than the server has left")


def test_conversion_ends_in_the_end(convert, monkeypatch):
    """Others may wait for what it makes."""
    monkeypatch.setattr(forkserver, "_COMPILER_SECONDS", 1)
    how, told = convert(signal.pause)
    assert (how, told) == ("SIGALRM: it took too long", b"")


def test_conversion_that_ends_with_the_server_does_not_count_as_killed(start, tmp_path):
    parent = start("obedient", 1, tmp_path / "form")
    (tmp_path / "form.lock").touch()
    (tmp_path / "form.tried").write_bytes(b"..")
    parent.control.close()
    parent.process.wait(DEADLINE_SECONDS)
    assert (tmp_path / "form.tried").read_bytes() == b"."


# `pierhead-server compile`


@pytest.fixture
def folder(tmp_path, exported_folder, monkeypatch):
    monkeypatch.setattr(forkserver, "settle_process", lambda: None)  # this one goes on
    folder = tmp_path / "artifact"
    folder.mkdir()
    for path in exported_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_form_is_compiled_beside_the_model_once(folder, capsys):
    forkserver.compile_beside(folder)
    (entry,) = [path for path in (folder / "compiled").iterdir() if path.is_dir()]
    assert f"compiled into {entry}: it is taken where code from the artifact is allowed" in capsys.readouterr().out
    forkserver.compile_beside(folder)
    assert capsys.readouterr().out == "nothing to do: the model is served in its compiled form\n"
    (entry / "model.bin").write_bytes(b"")
    forkserver.compile_beside(folder)
    assert "compiled into" in capsys.readouterr().out


def test_model_that_has_no_compiled_form_is_told(folder, capsys):
    (folder / "model.yaml").write_text("format: predictor\n")
    (folder / "predictor.py").write_text("class Predictor:\n    pass\n")
    with pytest.raises(ArtifactInvalidError, match="predictor is code"):
        forkserver.compile_beside(folder)


def test_model_that_cannot_be_converted_is_an_error(folder):
    (folder / "model.yaml").write_text(
        "{format: torch.export, program: model.pt2, inputs: [{name: x, shape: [3, 64, 64], dtype: float64}]}"
    )
    with pytest.raises(ArtifactInvalidError):
        forkserver.compile_beside(folder)
