"""Fork servers without a model, good and bad: they speak as the real one does, and a call's body says what to do.

The obedient one is the real fork server, whose forks answer calls without torch.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
from pierhead_server.control import Expect, Failed, Formed, Load, NotFormed, Ready, receive_command, send
from pierhead_server.errors import DriverTooOldError
from pierhead_server.forkserver import ForkServer
from pierhead_server.messages import Call, Hello, Refusal, Reply, Split, pack, read
from pierhead_server.signature import Signature

DIE, REFUSE, WAIT_FOR, LEAVE, SAY = b"die", b"refuse", b"wait for ", b"leave", b"say "
SPLIT = b"split "  # and the pieces, as `make_parts` writes them
SIGNATURE = Signature((), ())
EXPECTED = []  # that this process was told


class Obedient(ForkServer):
    """Ready at once, with `batch`; faster, with batches of FORMED_BATCH, when `form_when` is there.

    Its workers do what each call's body says, and answer with their pid and the form they were forked with.
    """

    FORMED_BATCH = 3

    def __init__(self, control: socket.socket, load: Load, batch: int, form_when: Path | None) -> None:
        model = SimpleNamespace(form="quick", batch=batch, signature=SIGNATURE)
        order = form_when and SimpleNamespace(entry=form_when)
        super().__init__(control, SimpleNamespace(model=model, order=order, load=None, slow=False, network=None), load)
        self._form_when = form_when

    def _compile(self):
        wait_for(self._form_when)

    def _take_compiled_form(self, _):
        model = self._loaded.model
        model.form, model.batch = "compiled", self.FORMED_BATCH
        send(self._control, Formed(model.form, model.batch))

    def _work(self, connection, place):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), connection.makefile("rb") as stream:
            connection.sendall(pack(Hello(self._loaded.model.form, self._loaded.model.batch)))
            decoder = msgspec.msgpack.Decoder(list[Call])
            while (calls := read(stream, decoder)) is not None:
                for reply in [self._obey_call(call, len(calls)) for call in calls]:
                    connection.sendall(pack(reply))

    def _obey_call(self, call, beside):
        told = call.body
        if told == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if told == LEAVE:
            sys.exit(3)
        if told.startswith(SAY):  # on stderr, and end
            os.write(2, told.removeprefix(SAY))
            os._exit(3)
        if told == REFUSE:
            return Reply(400, b"refused")
        if told.startswith(SPLIT):
            return make_split(call)
        if told.startswith(WAIT_FOR):
            wait_for(Path(os.fsdecode(told.removeprefix(WAIT_FOR))))
        answer = {"pid": os.getpid(), "form": self._loaded.model.form, "beside": beside}
        if call.first is not None:
            answer = {"predictions": [answer | {"first": call.first}]}
        return Reply(200, msgspec.json.encode(answer))


def make_parts(*parts, together=1):
    """A call's body that is split into these: bodies, or (body, pixels)."""
    pairs = [part if isinstance(part, tuple) else (part, 0) for part in parts]
    return SPLIT + msgspec.msgpack.encode((together, pairs))


def make_split(call):
    body = call.body.removeprefix(SPLIT)
    together, pairs = msgspec.msgpack.decode(body, type=tuple[int, list[tuple[bytes, int]]])
    pieces = [Call(call.dialect, body, first=place) for place, (body, _) in enumerate(pairs)]
    return Split(pieces, [pixels for _, pixels in pairs], b"%d" % len(call.body), together)


def wait_for(path):
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            os._exit(1)  # so that no test leaves it behind
        time.sleep(0.005)


def obedient(control, load, batch="1", form_when=""):
    Obedient(control, load, int(batch), Path(form_when) if form_when else None).run()


def bad_form(control, load, marker):
    """Its faster form dies as soon as it is forked, so often as `marker` has lines left."""

    class Bad(Obedient):
        def _work(self, connection, place):
            if self._loaded.model.form == "compiled" and (left := Path(marker).read_text()):
                Path(marker).write_text(left[1:])
                os.kill(os.getpid(), signal.SIGKILL)
            super()._work(connection, place)

    Bad(control, load, 1, Path(f"{marker}.form")).run()


def mute_at_first(control, load, marker):
    """Its first worker says nothing, ever; `marker` tells that there was one."""

    class Mute(Obedient):
        def _work(self, connection, place):
            if not Path(marker).exists():
                Path(marker).touch()
                wait_for(Path(f"{marker}.never"))
            super()._work(connection, place)

    Mute(control, load, 1, None).run()


def refuses_its_sample(control, load, marker):
    """Workers whose model does not answer its sample, so often as `marker` has lines left."""

    class Refusing(Obedient):
        def _work(self, connection, place):
            if left := Path(marker).read_text():
                Path(marker).write_text(left[1:])
                connection.sendall(pack(Refusal("ArtifactInvalid", "the model cannot answer warmup.json: no")))
                connection.recv(1)  # until the listener has closed it
                return
            super()._work(connection, place)

    Refusing(control, load, 1, None).run()


def mortal(control, load, marker):
    """Its workers answer one call each and end at the next, while `marker` is there."""

    class Mortal(Obedient):
        left = 1  # of each fork its own

        def _obey_call(self, call, beside):
            if Path(marker).exists() and not self.left:
                os._exit(3)
            self.left = 0
            return super()._obey_call(call, beside)

    Mortal(control, load, 1, None).run()


def on_a_device(control, load, how="moves"):
    """The real workers of a model that moves to a device, or fails to, or whose driver is too old."""
    from pierhead_server.computing import Computed

    class Result:
        labels, echoes_key = None, False

        def predictions(self):
            return [os.getpid()]

    class Model:
        form, batch, signature, sample = "quick", 1, SIGNATURE, None

        def move(self, device):
            if how == "fails":
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
            assert str(device).startswith(load.device)
            self.form, self.batch = "cuda", 32

        def limit_memory(self, most):
            pass

        def measure(self, request):
            return None

        def prepare(self, request):
            return request

        def compute(self, prepared):
            for request in prepared:
                for gate in request.instances:
                    wait_for(Path(gate))
            return [Computed(Result(), 1) for _ in prepared]

    class Old(ForkServer):
        def _take_device(self, place):
            raise DriverTooOldError("the node's NVIDIA driver knows CUDA 12.4")

    kind = Old if how == "old" else ForkServer
    kind(control, SimpleNamespace(model=Model(), order=None, load=None, slow=False, network=None), load).run()


def unformed(control, load):
    """Finds that there will be no faster form."""
    send(control, NotFormed("the model cannot be converted: of no kind"))
    obedient(control, load)


def formed_twice(control, load, marker):
    """Its faster form comes twice, and the worker of the second is ready before the one of the first.

    That one waits for the file `marker`.late, or is killed if there is a file `marker`.dies.
    """

    class Twice(Obedient):
        def _take_compiled_form(self, how):
            super()._take_compiled_form(how)
            super()._take_compiled_form(how)

        def _start(self, number, main):
            super()._start(number, (lambda: self._be_late(main)) if number == 1 else main)

        def _be_late(self, main):
            if Path(f"{marker}.dies").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            wait_for(Path(f"{marker}.late"))
            main()

    Twice(control, load, 1, Path(marker)).run()


def expectant(control, load):
    """Was told that torch will be needed before it was told what to load, or ends."""
    if not EXPECTED:
        os._exit(7)
    obedient(control, load)


def misfit(control, load):
    """Finds the artifact wrong."""
    send(control, Failed("ArtifactInvalid", "weights: do not fit"))


def dies_loading(control, load):
    """Is killed while it loads, as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_when_ready(control, load):
    """Is killed as soon as it has loaded, time and again."""
    send(control, Ready("quick", 1, SIGNATURE))
    os.kill(os.getpid(), signal.SIGKILL)


def ignores_its_end(control, load):
    """Does not leave when the listener closes the connection."""
    send(control, Ready("quick", 1, SIGNATURE))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(Exception):
            receive_command(control)
        time.sleep(0.05)


def main():
    name, *arguments, descriptor = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    command, _ = receive_command(control)
    if isinstance(command, Expect):
        EXPECTED.append(command)
        command, _ = receive_command(control)
    if isinstance(command, Load):
        globals()[name](control, command, *arguments)
    os._exit(0)


if __name__ == "__main__":
    main()
