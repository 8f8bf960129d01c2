"""Runs programs to their end: by argument list, with a deadline, their output in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import ClusterError

_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()


def run(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> None:
    """Runs `argv`, its output appended to `log`.

    Raises ClusterError if it fails or takes longer than `timeout` seconds. The program gets a process group of its
    own, which is ended with it: `go build` and `buildah` leave children behind when only they are killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(argv)}\n".encode())
        output.flush()
        process = _start(argv, output.fileno(), env, cwd)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"`{argv[0]}` was not done after {timeout:.0f} s; its output is in {log}") from None
        finally:
            _end(process)
    if status != 0:
        raise ClusterError(f"`{' '.join(argv[:3])} …` failed (exit status {status}); see {log}\n{tail(log)}")


def output(argv: Sequence[str], *, stdin: str = "", timeout: float = 60, env: Mapping[str, str] | None = None) -> str:
    """The standard output of `argv`. Raises ClusterError with its standard error if it fails or takes too long."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    except FileNotFoundError:
        raise ClusterError(f"`{argv[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{' '.join(argv[:4])}` was not done after {timeout:.0f} s") from None
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(argv[:4])}` failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def succeeds(argv: Sequence[str], *, timeout: float = 30) -> bool:
    """Whether `argv` ends with status 0 in time; its output is dropped."""
    try:
        return subprocess.run(argv, capture_output=True, timeout=timeout, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, indented, to show below an error."""
    text = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in text[-lines:])


def end_all() -> None:
    """Ends what other threads are still running, so that an interrupted program leaves no build behind."""
    with _running_lock:
        processes = list(_running)
    for process in processes:
        _kill_group(process)


def _start(
    argv: Sequence[str], output: int, env: Mapping[str, str] | None, cwd: Path | None
) -> subprocess.Popen[bytes]:
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd, start_new_session=True
        )
    except FileNotFoundError:
        raise ClusterError(f"`{argv[0]}` is not installed") from None
    with _running_lock:
        _running.add(process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _kill_group(process)
        process.wait()
    with _running_lock:
        _running.discard(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Not reaped yet, so the pid, which is also the group's id, cannot have been given to another program.
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
