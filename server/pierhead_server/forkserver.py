"""The model's first process: loads the model once, then forks the workers, who share its memory.

It is single-threaded, so that a fork is a whole copy. It never computes for a client: when a worker dies, the next one
is a fork away. It also makes the compiled form, in a child of low priority.

torch is imported for what needs it. Once there is a compiled form nothing does, and the process begins anew without:
`exec` keeps its workers, and the memory goes that torch took.
"""

import contextlib
import ctypes
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from pierhead_server import memory
from pierhead_server.control import (
    Died,
    Expect,
    Failed,
    Fork,
    Formed,
    Handover,
    Kill,
    Load,
    NotFormed,
    Ready,
    describe_exit,
    receive_command,
    send,
)
from pierhead_server.devices import cpu_count
from pierhead_server.errors import ArtifactInvalidError, StartupError
from pierhead_server.launch import FORK_SERVER
from pierhead_server.logs import configure_logging
from pierhead_server.words import Words

if TYPE_CHECKING:  # torch comes with it
    import torch

    from pierhead_server.model import Loaded, Model

logger = logging.getLogger(__name__)

_COMPILER = -1  # the number of the child that compiles
_ANY_PIXELS = 2**31  # of pictures that nobody sends
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST_MMAP_THRESHOLD = 32 << 20  # that glibc takes
_KEPT_BYTES = 256 << 20
_NICE = 19  # those that serve come first
_COMPILER_SECONDS = 3600  # longer than any model takes, on CPUs that have little time left; others may wait for it
_MOST_REASON_BYTES = 4096  # of why there is no compiled form
# Of a worker, where the kernel looks for memory: one is a fork away, while the listener and this process hold all else.
_WORKER_OOM_SCORE = "500"

# One worker computes on each CPU. Threads of several on the same CPU would wait for each other, spinning; and a process
# with threads cannot be forked.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Child:
    """A process that was forked."""

    number: int  # of the worker
    pid: int
    words: Words


class ForkServer:
    """One model and the processes forked from it."""

    def __init__(self, control: socket.socket, loaded: "Loaded", load: Load, handover: Handover | None = None) -> None:
        """`handover` is of the fork server that this process was before."""
        self._control = control
        self._loaded = loaded
        self._load = load
        self._before = handover
        self._children: dict[int, Child] = {}  # by pidfd
        self._share: int | None = None  # of memory, for each worker
        self._unusable = os.eventfd(0, os.EFD_CLOEXEC)  # written by a worker that cannot use the compiled form
        self._made_anew = False  # whether it was, for that reason
        self._reason = os.memfd_create("reason")  # written by a compiler that makes none
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._unusable, selectors.EVENT_READ)
        if handover:
            self._share, self._made_anew = handover.share, handover.made_anew
            for number, pid, descriptor, reader in handover.children:
                self._adopt(Child(number, pid, Words(reader)), descriptor)

    def run(self) -> None:
        """Until the listener is gone."""
        if self._load.device == "cpu" and self._loaded.network and "torch" in sys.modules:
            self._begin_anew(announced=False)
        self._announce()
        # Whose form was made before, and is gone again, goes without: to make it time and again would never end.
        if self._loaded.order and not self._before:
            self._start(_COMPILER, self._compile)
        from pierhead_server import entries

        touched = float("-inf")
        while True:
            if self._loaded.network and time.monotonic() - touched > entries.TOUCH_SECONDS:
                entries.touch(self._loaded.network.entry)
                touched = time.monotonic()
            for key, _ in self._selector.select(entries.TOUCH_SECONDS):
                if isinstance(key.data, Words):
                    self._hear(key.data)
                elif key.fileobj == self._unusable:
                    self._make_anew()
                elif key.fileobj is not self._control:
                    self._reap(key.fd)
                elif not self._obey():
                    return

    def _announce(self) -> None:
        model = self._loaded.model
        _settle_memory()
        if self._before and self._before.announced:
            if self._loaded.network:
                send(self._control, Formed(model.form, model.batch))
            else:
                self._stay("the compiled form was removed, or damaged, as soon as it was made")
            return
        self._share = self._load.worker_memory_bytes or memory.compute_share(
            memory.read_limit(), memory.read_used(), self._load.workers
        )
        if self._share is not None:
            logger.info("each worker may take %d MiB beside the model", self._share >> 20)
        slow_start = self._load.device != "cpu" or self._loaded.slow
        send(self._control, Ready(model.form, model.batch, model.signature, slow_start))

    def _obey(self) -> bool:
        """Do what the listener wants; False when it is gone."""
        command, descriptors = receive_command(self._control)
        match command:
            case Fork():
                connection = socket.socket(fileno=descriptors[0])
                self._start(command.worker, lambda: self._work(connection, command.place))
                connection.close()
            case Kill():
                for descriptor, child in self._children.items():
                    if child.number == command.worker:
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            case None:
                self._end_children()
                return False
        return True

    def _start(self, number: int, main: Callable[[], None]) -> None:
        parent, words = os.getpid(), Words()
        pid = os.fork()
        if pid:
            words.leave_to_child()
            self._adopt(Child(number, pid, words), os.pidfd_open(pid))
            return
        code = 1
        try:
            words.take_stderr()
            self._forget(parent)
            main()
            code = 0
        except BaseException:
            logger.exception("process %d of the model ended", number)
        finally:
            logging.shutdown()
            # Nothing of the parent's is to be flushed or cleaned up twice.
            os._exit(code)

    def _adopt(self, child: Child, descriptor: int) -> None:
        """`descriptor` is the child's pidfd."""
        self._children[descriptor] = child
        self._selector.register(descriptor, selectors.EVENT_READ)
        self._selector.register(child.words.reader, selectors.EVENT_READ, child.words)

    def _begin_anew(self, *, announced: bool) -> NoReturn:
        """Become a process without torch, with the same children."""
        handover = Handover(
            self._load,
            announced,
            self._made_anew,
            [(child.number, child.pid, descriptor, child.words.reader) for descriptor, child in self._children.items()],
            self._share,
        )
        file = os.memfd_create("handover", 0)
        os.write(file, msgspec.msgpack.encode(handover))
        kept = [self._control.fileno(), *(fd for _, _, *both in handover.children for fd in both)]
        for descriptor in kept:
            os.set_inheritable(descriptor, True)
        logging.shutdown()
        command = [*FORK_SERVER, str(self._control.fileno()), str(file)]
        os.execv(command[0], command)  # noqa: S606 - there is nothing for a shell to do

    def _forget(self, parent: int) -> None:
        """In a child: what belongs to the parent. Held open, the listener would not notice the parent's end."""
        # A child that computes notices nothing: without its parent it is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)
        for key in self._selector.get_map().values():
            if key.fileobj not in (self._control, self._unusable):
                os.close(key.fd)
        self._selector.close()
        self._control.close()

    def _work(self, connection: socket.socket, place: int) -> None:
        from pierhead_server.worker import Contract, refuse, run_pipelined_worker, run_worker

        contract = Contract(self._load.served, self._load.limits)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_WORKER_OOM_SCORE)
        if self._load.device == "cpu":
            settle(place, self._load.workers)  # and with it the threads that it is going to start
        try:
            device = self._take_device(place)
            model = self._take_model()
        except StartupError as error:
            refuse(connection, error)
            return
        if self._share is not None:
            model.limit_memory(int(memory.DECODING * self._share))
        if device is not None and _move(model, device):
            from pierhead_server.accelerator import enter_device

            run_pipelined_worker(connection, model, contract, partial(enter_device, device))
            return
        if self._load.device != "cpu":
            _use_cpus(self._load.workers)
        elif self._share is not None:
            contract = replace(contract, most_data=memory.read_data() + self._share)
        run_worker(connection, model, contract)

    def _take_model(self) -> "Model":
        """In a worker: the model, ready to compute. Raises StartupError."""
        from pierhead_server.converted import ConversionError

        loaded = self._loaded
        if loaded.load:
            return loaded.load()
        if loaded.network is None:
            return loaded.model
        try:
            loaded.network.load()
        except ConversionError as error:
            logger.warning("%s: the quick form computes", error)
            os.eventfd_write(self._unusable, 1)
            assert loaded.load_first is not None
            return loaded.load_first().model
        return loaded.model

    def _take_device(self, place: int) -> "torch.device | None":
        """The GPU that this worker computes on; None where it is the CPU. Raises DriverTooOldError."""
        if self._load.device == "cpu":
            return None
        from pierhead_server.accelerator import take_device

        try:
            return take_device(self._load.device, place)
        except RuntimeError:
            logger.exception("there is no GPU to compute on: the CPU does")
            return None

    def _compile(self) -> None:
        assert self._loaded.order is not None
        os.nice(_NICE)
        most = memory.compute_conversion(memory.read_limit(), memory.read_used())
        if most is not None:
            memory.limit_data(memory.read_data() + most)
        with contextlib.suppress(OSError):
            # Where memory is short all the same, this is what shall go.
            Path("/proc/self/oom_score_adj").write_text("1000")
        from pierhead_server import entries
        from pierhead_server.converted import ConversionError
        from pierhead_server.converting import make  # which takes seconds

        order = self._loaded.order
        try:
            if make(order, _COMPILER_SECONDS):
                entries.remove_unused(order.entry.parent)
        except ConversionError as error:
            os.pwrite(self._reason, str(error).encode(), 0)
            logger.warning("%s: the quick form stays", error)

    def _hear(self, words: Words) -> None:
        if not words.hear():
            self._selector.unregister(words.reader)
            words.close()

    def _reap(self, descriptor: int) -> None:
        child = self._children.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(child.pid, 0)
        child.words.hear()  # all that a pipe can hold; its end is an event of its own
        how = describe_exit(os.waitstatus_to_exitcode(status))
        if child.number == _COMPILER:
            self._take_compiled_form(how)
        else:
            send(self._control, Died(child.number, how, child.words.last()))

    def _take_compiled_form(self, how: str) -> None:
        """From now on workers are forked with it; the listener exchanges those that are there.

        `how` says how the compiler ended.
        """
        from pierhead_server.converted import ConversionError, Network

        order = self._loaded.order
        assert order is not None
        told = os.pread(self._reason, _MOST_REASON_BYTES, 0).decode(errors="replace")
        os.truncate(self._reason, 0)
        if told:  # the compiler has logged it
            send(self._control, NotFormed(told))
            return
        try:
            Network(order.entry)
        except ConversionError as error:
            self._stay(f"the compiler ended ({how}): {error}")
            return
        if self._is_changed():
            self._stay("the artifact was changed after it was loaded")
            return
        self._begin_anew(announced=True)

    def _make_anew(self) -> None:
        """A worker could not use the compiled form: until there is another one, all are forked with the quick one."""
        os.eventfd_read(self._unusable)
        if self._loaded.network is None:
            return  # another worker has said so
        assert self._loaded.load_first is not None
        self._loaded = replace(self._loaded.load_first(), state=self._loaded.state)
        _settle_memory()
        # Workers that share it, in place of those that have loaded it each for itself.
        send(self._control, Formed(self._loaded.model.form, self._loaded.model.batch))
        if self._loaded.order is None:
            self._stay("the compiled form cannot be used, and none is made here")
            return
        if self._made_anew:
            self._stay("the compiled form was made anew and still cannot be used")
            return
        self._made_anew = True
        self._start(_COMPILER, self._compile)

    def _is_changed(self) -> bool:
        """Whether another artifact would be loaded now."""
        from pierhead_server.artifact import read_state

        try:
            return read_state(Path(self._load.folder)) != self._loaded.state
        except (OSError, ArtifactInvalidError):
            return True

    def _stay(self, reason: str) -> None:
        logger.error("%s: the quick form stays", reason)
        send(self._control, NotFormed(reason))

    def _end_children(self) -> None:
        """A worker ends when its connection does, unless it is caught in the model."""
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)
            child.words.hear()
            if child.number == _COMPILER:
                self._forgive(child)

    def _forgive(self, compiler: Child) -> None:
        """It was not killed for want of anything."""
        from pierhead_server import entries

        os.waitpid(compiler.pid, 0)
        assert self._loaded.order is not None
        entries.forgive(self._loaded.order.entry)


def _move(model: "Model", device: "torch.device") -> bool:
    """Have it compute there from now on; where it cannot, it goes on as before."""
    try:
        model.move(device)
    except Exception:  # CUDA, torch and a stranger's model may raise anything
        logger.exception("the model cannot be taken to %s: the CPU computes it", device)
        return False
    return True


def _use_cpus(workers: int) -> None:
    """In a worker that was to have a GPU, and is one of few."""
    import torch

    torch.set_num_threads(max(1, cpu_count() // workers))


def settle(place: int, workers: int) -> None:
    """Where there is a worker for each CPU, keep one on its own: its caches are worth a tenth of all it computes.

    Left alone, the kernel moves it each time that the listener wakes up beside it.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == workers:
        os.sched_setaffinity(0, {cpus[place]})


def _settle_memory() -> None:
    """What is there now stays: collections leave it alone, and so the pages stay shared with the workers."""
    gc.collect()
    gc.freeze()
    gc.enable()
    # A large JSON body makes 100,000s of objects that are no garbage; by default each 700 of them start a collection.
    gc.set_threshold(100_000, 50, 100)


def _keep_freed_memory() -> None:
    """What a forward pass frees, the next one takes: given back to the kernel, a quarter of the time is page faults."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def settle_process() -> None:
    """Before anything large is imported."""
    _keep_freed_memory()
    gc.disable()  # until the model is loaded: a tenth of the seconds, while nothing but modules is made
    for variable in THREAD_VARIABLES:
        os.environ[variable] = "1"


def compile_beside(folder: Path) -> None:
    """Make a folder's compiled form for this machine's CPU, and leave it there. Raises StartupError."""
    settle_process()
    from pierhead_server.artifact import read_artifact
    from pierhead_server.converted import ConversionError
    from pierhead_server.converting import make
    from pierhead_server.model import COMPILED_FOLDER, LoadOptions, load_model

    loaded = load_model(read_artifact(folder), LoadOptions(_ANY_PIXELS, compiled_dir=folder / COMPILED_FOLDER))
    if loaded.network and loaded.load_first:
        loaded = loaded.load_first()  # what is there may be spoilt
    if loaded.order is None:
        print(f"nothing to do: the model is served in its {loaded.model.form} form")
        return
    try:
        made = make(loaded.order)
    except ConversionError as error:
        raise ArtifactInvalidError(str(error)) from error
    if made:
        print(f"compiled into {loaded.order.entry}: it is taken where code from the artifact is allowed")
    else:
        print("nothing to do: the model is served in its compiled form")


def main(control: socket.socket, handover: Handover | None = None) -> None:
    """Load what the listener says, serve forks."""
    # A terminal's Ctrl-C and a careless `kill` reach the whole group; the listener decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    settle_process()
    # All that a worker needs, for it to be forked with; before the first message, which comes with the artifact.
    import openvino  # noqa: F401 - it starts no thread

    import pierhead_server.worker  # noqa: F401
    from pierhead_server.artifact import read_artifact
    from pierhead_server.images import bound_pillow
    from pierhead_server.model import LoadOptions, load_model

    load = handover.load if handover else _receive_load(control)
    if load is None:
        return
    configure_logging(level=load.log_level, json=load.log_json)
    bound_pillow(load.max_image_pixels)
    compiled_dir = Path(load.compiled_dir) if load.compiled_dir else None
    options = LoadOptions(load.max_image_pixels, load.allow_code, compiled_dir, load.device)
    try:
        loaded = load_model(read_artifact(Path(load.folder)), options)
    except StartupError as error:
        send(control, Failed(error.reason, str(error)))
        return
    ForkServer(control, loaded, load, handover).run()


def _receive_load(control: socket.socket) -> Load | None:
    """What to load, with torch where it is needed in any case; None when the listener is gone."""
    command, _ = receive_command(control)
    if isinstance(command, Expect):
        import pierhead_server.eager

        command, _ = receive_command(control)
    if not isinstance(command, Load):
        return None
    if command.device != "cpu":
        import pierhead_server.accelerator  # noqa: F401 - or each worker would import torch for itself
    return command


def _read_handover(descriptor: int) -> Handover:
    """What `_begin_anew` left."""
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        handover = msgspec.msgpack.decode(file.read(), type=Handover)
    for _, _, *both in handover.children:
        for kept in both:
            os.set_inheritable(kept, False)
    return handover


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    main(channel, _read_handover(int(sys.argv[2])) if len(sys.argv) > 2 else None)
    logging.shutdown()
    # Taking torch down bit by bit takes a second, and some of it complains.
    os._exit(0)
