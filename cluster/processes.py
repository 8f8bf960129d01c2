"""Starts and stops the cluster's programs, knowing each again by its pid, its start time and the boot it belongs to.

A pid alone is not enough: once the program has ended, the number may be given to any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import commands, parallel, settings
from cluster.errors import ClusterError

RECORDS = settings.RUN / "processes"
POLL_SECONDS = 0.05
KILL_SECONDS = 10  # what the kernel may take to end a program that is deep in a system call

# Programs that this very Python started: a child that ended stays a zombie until it is asked for.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Identity:
    """One program's run: no other has all three."""

    pid: int
    started: int  # clock ticks since boot
    boot: str  # the kernel's random id of this boot

    @property
    def alive(self) -> bool:
        child = _children.get(self.pid)
        if child is not None:
            child.poll()
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """Who runs under `pid` now; None for nobody, or for one that has ended and was not waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = parse_stat(stat)
    return None if state in "ZX" else Identity(pid, started, _boot_id())


def parse_stat(stat: str) -> tuple[str, int]:
    """State and start time out of `/proc/PID/stat`; the program's name, in parentheses, may hold anything."""
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def start(name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Identity:
    """Starts `argv` in a session of its own, its output in `log`, and records who it is."""
    log.parent.mkdir(parents=True, exist_ok=True)
    RECORDS.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd="/",
            start_new_session=True,
        )
    _children[process.pid] = process
    identity = identify(process.pid)
    if identity is None:
        raise ClusterError(f"{name} ended at once; see {log}\n{commands.tail(log)}")
    _write_record(name, identity)
    return identity


def recorded() -> dict[str, Identity]:
    """Every program that was started and not stopped since, whether it still runs or not."""
    found = {}
    for path in sorted(RECORDS.glob("*.json")):
        try:
            found[path.stem] = Identity(**json.loads(path.read_text()))
        except (ValueError, TypeError):  # cut off while it was written: nothing can be told from it
            path.unlink()
    return found


def alive(name: str) -> bool:
    """Whether the program recorded under `name` runs."""
    identity = recorded().get(name)
    return identity is not None and identity.alive


def stop(names: Iterable[str], grace: float = 10) -> None:
    """Ends the named programs, all at once: SIGTERM, then SIGKILL to what is left after `grace` seconds."""
    known = recorded()
    wanted = {name: known[name] for name in names if name in known}
    end(wanted.values(), grace)
    for name in wanted:
        (RECORDS / f"{name}.json").unlink(missing_ok=True)


def end(identities: Iterable[Identity], grace: float) -> None:
    """Ends these very programs, and none that has taken a pid over since."""
    left = [identity for identity in identities if _send(identity, signal.SIGTERM)]
    deadline = time.monotonic() + grace
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [identity for identity in left if identity.alive]
    left = [identity for identity in left if _send(identity, signal.SIGKILL)]
    deadline = time.monotonic() + KILL_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [identity for identity in left if identity.alive]
    if left:
        raise ClusterError(f"processes that SIGKILL did not end: {', '.join(str(one.pid) for one in left)}")


def wait_until(
    what: str, condition: Callable[[], bool], timeout: float, needs: Mapping[str, Path] | None = None
) -> None:
    """Returns once `condition()` holds.

    `needs` maps the programs that it depends on to their logs. Raises ClusterError, naming `what` and a log, after
    `timeout` seconds, or as soon as a program that is needed has ended.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        for name, log in (needs or {}).items():
            if not alive(name):
                raise ClusterError(f"{name} ended while waiting for {what}; see {log}\n{commands.tail(log)}")
        if parallel.cancelled():
            raise ClusterError(f"no longer waiting for {what}")
        if time.monotonic() > deadline:
            logs = "".join(f"\n{log}:\n{commands.tail(log)}" for log in (needs or {}).values())
            raise ClusterError(f"{what}: not so after {timeout:.0f} s{logs}")
        time.sleep(POLL_SECONDS)


def _send(identity: Identity, number: signal.Signals) -> bool:
    """Signals that very program; False if it has ended."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle stays with the program it was opened on, so what is checked now is what gets the signal.
        if not identity.alive:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _write_record(name: str, identity: Identity) -> None:
    path = RECORDS / f"{name}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(identity)))
    partial.rename(path)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
