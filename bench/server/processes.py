"""Programs that the bench starts and ends, and what they take of the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 15.0
_POLL_SECONDS = 0.01


class BenchError(Exception):
    """Something kept the bench from measuring; the message says what."""


@dataclass(frozen=True)
class Memory:
    """One process' memory in bytes; `pss` counts a page that n processes share as an nth for each."""

    pid: int
    name: str
    rss: int
    pss: int


def wait_until(what: str, condition: Callable[[], bool], timeout: float) -> None:
    """Returns once `condition()` holds; raises BenchError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not so after {timeout:.0f} s")
        time.sleep(_POLL_SECONDS)


def family(pid: int) -> list[int]:
    """`pid` and every process that descends from it or shares its session, in ascending order."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = (int(fields[1]), int(fields[3]))
    found = {pid} & parents.keys()
    while True:
        more = {one for one, (parent, session) in parents.items() if parent in found or session == pid} - found
        if not more:
            return sorted(found)
        found |= more


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes have taken; one that is gone counts nothing."""
    return sum((int(fields[11]) + int(fields[12])) / _TICK for pid in pids if (fields := _stat(pid)))


def busy_seconds() -> float:
    """CPU time that the machine has given to programs, and lost to its neighbours, since it started.

    Interrupts are left out: the loopback's, which are many, belong to no process.
    """
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = (
        int(value) / _TICK for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return user + nice + system + steal


def memory(pids: Iterable[int]) -> list[Memory]:
    """What each process holds; one that is gone is left out."""
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rollup = parse_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text())
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.append(Memory(pid, name, rollup["Rss"], rollup["Pss"]))
    return found


def parse_rollup(text: str) -> dict[str, int]:
    """The sums of `/proc/PID/smaps_rollup`, in bytes."""
    rows = (line.split() for line in text.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3}


def rss(pids: Iterable[int]) -> int:
    """The resident bytes of these processes together, cheaply: pages that they share count for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _stat(pid: int) -> list[str] | None:
    """`/proc/PID/stat` from the state on: state, parent, group, session, ..., user and system ticks at 11 and 12."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields


def _find_group(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[2]) if fields else None


def _find_start(pid: int) -> int | None:
    """In ticks since the machine started."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


class Program:
    """A program in a session of its own, so that it can be ended, and held still, with all that it started."""

    def __init__(self, argv: Sequence[str], *, log: Path, environment: Mapping[str, str], piped: bool = False) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        pipe = subprocess.PIPE if piped else None
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        return family(self.process.pid)

    def check_alive(self) -> None:
        """Raises BenchError, with the end of its log, if it has ended."""
        if self.process.poll() is not None:
            tail = "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-8:])
            raise BenchError(f"{self.log.stem} ended with status {self.process.returncode}:\n{tail}")

    def signal(self, number: signal.Signals) -> None:
        """Signals it and all that it started, while it lives: only then the group's number is surely its own."""
        if self.process.poll() is None:
            others = [pid for pid in self.pids if _find_group(pid) != self.process.pid]
            os.killpg(self.process.pid, number)
            for pid in others:  # that have gone into groups of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self) -> None:
        """SIGTERM to it, and SIGKILL to what is left of its family."""
        begun = {pid: _find_start(pid) for pid in self.pids}
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        self.signal(signal.SIGKILL)
        for pid, start in begun.items():
            # Whatever session it has gone into: with another start the number would be somebody else's by now.
            if start is not None and _find_start(pid) == start:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(_END_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


@contextlib.contextmanager
def running(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], piped: bool = False
) -> Iterator[Program]:
    """A program that is ended at the end."""
    program = Program(argv, log=log, environment=environment, piped=piped)
    try:
        yield program
    finally:
        program.end()
