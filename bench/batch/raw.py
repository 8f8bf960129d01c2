"""The raw loop over the files that the worker reads, a process a core as the worker's are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from bench.batch.cpus import pin
from bench.server.processes import running
from bench.server.raw import RawLoop, make_command
from bench.server.workshop import Workpiece, Workshop, make_environment

EAGER = ("eager", "channels-last")  # torch as it is, as the worker's quick form is
KINDS = {"eager": EAGER, "jit frozen": ("jit frozen",), "aoti": ("aoti",), "openvino": ("openvino",)}
FORMS = [f"{form} b{batch}" for form in (*EAGER, "jit frozen", "aoti", "openvino") for batch in (1, 4, 8)]


@contextlib.contextmanager
def start_raw_loop(workshop: Workshop, piece: Workpiece, cpus: Sequence[str]) -> Iterator[RawLoop]:
    """Starts a process on each of these CPUs; each reads a picture from its file whenever it computes one."""
    environment = make_environment({"OMP_NUM_THREADS": "1"})
    with contextlib.ExitStack() as stack:
        yield RawLoop(
            [
                stack.enter_context(
                    running(
                        pin(make_command(piece, "cpu", "disk"), cpu),
                        log=workshop.log(f"batch-raw-{cpu}"),
                        environment=environment,
                        piped=True,
                    )
                )
                for cpu in cpus
            ]
        )


def list_kind(kind: str) -> list[str]:
    """The forms of one kind."""
    return [form for form in FORMS if form.rpartition(" ")[0] in KINDS[kind]]
