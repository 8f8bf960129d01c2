"""Programs are told by who they are, not by their number alone."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from cluster import processes
from cluster.errors import ClusterError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)",
]


@pytest.fixture(autouse=True)
def records(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "RECORDS", tmp_path / "records")
    yield tmp_path / "records"
    processes.stop(processes.recorded(), grace=0)


def test_parse_stat_takes_any_name():
    fields = " ".join(str(number) for number in range(4, 53))
    assert processes.parse_stat(f"12 (a) b (c) S {fields}") == ("S", 22)


def test_a_started_program_is_alive_until_it_is_stopped(tmp_path):
    processes.start("one", SLEEP, tmp_path / "log")
    assert processes.alive("one")
    processes.stop(["one"])
    assert not processes.alive("one")
    assert processes.recorded() == {}


# Ends once its file is there: one that ended at once may be gone before it is recorded.
PATIENT = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"


def test_a_program_that_ended_is_not_alive(tmp_path):
    processes.start("one", [sys.executable, "-c", PATIENT, str(tmp_path / "end")], tmp_path / "log")
    assert processes.alive("one")
    (tmp_path / "end").touch()
    processes.wait_until("it has ended", lambda: not processes.alive("one"), 10)


def test_stop_kills_what_does_not_listen(tmp_path):
    log = tmp_path / "log"
    processes.start("one", STUBBORN, log)
    processes.wait_until("it listens", lambda: log.read_text() != "", 10)
    processes.stop(["one"], grace=0.1)
    assert not processes.alive("one")


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_pid_that_someone_else_has_now_is_left_alone(records, tmp_path, change):
    identity = processes.start("one", SLEEP, tmp_path / "log")
    earlier = dataclasses.replace(identity, **change)
    (records / "earlier.json").write_text(json.dumps(dataclasses.asdict(earlier)))
    assert not processes.alive("earlier")
    processes.stop(["earlier"])
    assert processes.alive("one")


def test_a_record_cut_off_while_it_was_written_is_dropped(records):
    records.mkdir()
    (records / "one.json").write_text('{"pid": 1')
    assert processes.recorded() == {}
    assert not (records / "one.json").exists()


def test_wait_says_what_was_awaited_and_where_to_look(tmp_path):
    log, gate = tmp_path / "etcd.log", tmp_path / "gate"
    dies = f"""
import pathlib, time
while not pathlib.Path({str(gate)!r}).exists():
    time.sleep(0.005)
print('no space left')
raise SystemExit(1)
"""
    processes.start("etcd", [sys.executable, "-c", dies], log)  # and is known before it dies
    gate.touch()
    with pytest.raises(ClusterError, match=r"(?s)etcd ended while waiting for etcd is healthy; see .*no space left"):
        processes.wait_until("etcd is healthy", lambda: False, 10, {"etcd": log})


def test_wait_ends_at_its_deadline():
    with pytest.raises(ClusterError, match="DNS: not so after 0 s"):
        processes.wait_until("DNS", lambda: False, 0)


def test_identify_nobody():
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text())
    assert processes.identify(pid_max + 1) is None
