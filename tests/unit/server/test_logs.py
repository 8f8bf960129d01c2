"""Logs: one JSON object a line, whatever happens, and of requests neither too many lines nor too much."""

import json
import logging
import re
import subprocess
import sys

import pytest
from pierhead_server.logs import AnsweredRequest, RequestLog, Tally

REQUEST = AnsweredRequest("POST", "/v1/models/m:predict", 200, 0.0123456789, 2, 345, "0af7651916cd43dd8448eb211c80319c")


def run(program, *, as_json=True, level="info"):
    """The lines that a program writes to stderr."""
    start = f"from pierhead_server.logs import configure_logging\nconfigure_logging(level={level!r}, json={as_json})\n"
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_line_is_a_json_object():
    (line,) = run("import logging; logging.getLogger('a.b').warning('%s\\n\\ud800 ü', 'x', extra={'worker': 3})")
    record = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record.pop("pid") > 0
    assert record == {"severity": "WARNING", "logger": "a.b", "message": "x\n\ud800 ü", "worker": 3}


def test_exceptions_and_warnings_are_json_too():
    lines = run(
        """
import asyncio, logging, threading, warnings
warnings.warn("old")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("caught")
thread = threading.Thread(target=lambda: int("x"), name="reader")
thread.start()
thread.join()
async def lose():
    asyncio.get_running_loop().call_soon(int, "y")
    await asyncio.sleep(0)
asyncio.run(lose())
raise KeyError("z")
"""
    )
    records = [json.loads(line) for line in lines]
    assert [record["severity"] for record in records] == ["WARNING", "ERROR", "CRITICAL", "ERROR", "CRITICAL"]
    assert "UserWarning: old" in records[0]["message"]
    assert "ZeroDivisionError: division by zero" in records[1]["exception"]
    assert records[2]["message"] == "thread reader ends by an exception"
    assert "ValueError: invalid literal" in records[2]["exception"]
    assert "'y'" in records[3]["exception"]
    assert records[4]["message"] == "the process ends by an exception"
    assert "KeyError: 'z'" in records[4]["exception"]


def test_uvicorn_logs_in_the_same_format():
    lines = run("import logging; logging.getLogger('uvicorn.error').info('Up', extra={'color_message': '\\x1b[1mUp'})")
    record = json.loads(lines[0])
    assert (record["logger"], record["message"], "color_message" in record) == ("uvicorn.error", "Up", False)


def test_level_counts():
    assert run("import logging; logging.warning('x')", level="error") == []


def test_text_is_for_people():
    (line,) = run("import logging; logging.getLogger('a').info('x')", as_json=False)
    assert line.endswith(" INFO a: x")


def test_request_is_one_line(caplog):
    caplog.set_level("INFO")
    RequestLog(1.0).write(REQUEST)
    (record,) = caplog.records
    assert record.message == "POST /v1/models/m:predict: 200 in 0.012 s"
    told = {name: getattr(record, name) for name in vars(REQUEST)}
    assert told == vars(REQUEST) | {"seconds": 0.012346}


def test_path_cannot_make_lines_of_its_own(caplog):
    RequestLog(0.0).write(AnsweredRequest("POST", "/v1/\n2026 INFO forged" + "x" * 1000, 500, 0.1))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.path.startswith("/v1/%0A2026%20INFO%20forgedxxx")
    assert len(record.path) == 500
    assert not hasattr(record, "trace_id")


@pytest.mark.parametrize(("sample", "code", "share"), [(0.0, 200, 0), (0.0, 499, 0), (0.0, 500, 1), (1.0, 200, 1)])
def test_all_or_none_are_told(sample, code, share):
    log = RequestLog(sample)
    assert {log.wants(code) for _ in range(100)} == {bool(share)}


def test_fraction_is_told():
    log = RequestLog(0.5)
    assert 300 < sum(log.wants(200) for _ in range(1000)) < 700


def test_tally_tells_at_once_and_then_once_in_a_while(caplog):
    now = [5.0]
    tally = Tally(logging.getLogger("t"), "%d lost", seconds=60, clock=lambda: now[0])
    for moment, count in ((5, 2), (6, 3), (64.9, 4), (65, 1), (70, 6), (200, 1)):
        now[0] = moment
        tally.add(count)
    assert caplog.messages == ["2 lost", "8 lost", "7 lost"]
