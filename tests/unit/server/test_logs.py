"""Logs: one JSON object a line, whatever happens, and of requests neither too many lines nor too much."""

import json
import logging
import os
import re
import select
import subprocess
import sys
import threading

import pytest
from pierhead_server.logs import AnsweredRequest, BoundedHandler, RequestLog, Tally

REQUEST = AnsweredRequest(
    method="POST",
    path="/v1/models/m:predict",
    dialect="kserve",
    code=200,
    seconds=0.0123456789,
    instances=2,
    bytes_in=345,
    bytes_out=67,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    request_id="7f3b",
)


def command(program, *, as_json=True, level="info", bounded=False):
    """A program that logs so."""
    given = f"level={level!r}, json={as_json}, bounded={bounded}"
    start = f"from pierhead_server.logs import configure_logging\nconfigure_logging({given})\n"
    return [sys.executable, "-c", start + program]


def run(program, **given):
    """The lines that a program writes to stderr."""
    done = subprocess.run(command(program, **given), capture_output=True, text=True, check=False)
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
    RequestLog(0.0).write(AnsweredRequest("POST", "/v1/\n2026 INFO forged" + "x" * 1000, "raw", 500, 0.1))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.path.startswith("/v1/%0A2026%20INFO%20forgedxxx")
    assert len(record.path) == 500
    assert not hasattr(record, "trace_id")


@pytest.mark.parametrize(("sample", "code", "share"), [(0.0, 200, 0), (0.0, 499, 0), (0.0, 500, 1), (1.0, 200, 1)])
def test_all_or_none_are_told(sample, code, share):
    log = RequestLog(sample)
    assert {log.wants(code, "vertex") for _ in range(100)} == {bool(share)}


def test_fraction_is_told():
    log = RequestLog(0.5)
    assert 300 < sum(log.wants(200, "vertex") for _ in range(1000)) < 700


EVERY = "from pierhead_server.logs import AnsweredRequest, RequestLog\nlog = RequestLog(0.0, every=True)\n"


def test_access_log_is_of_every_prediction_and_of_no_probe():
    asked = '[log.wants(200, "vertex"), log.wants(429, "oip"), log.wants(200, "probe"), log.wants(500, "probe")]'
    assert run(f"{EVERY}import sys\nprint({asked}, file=sys.stderr)") == ["[True, True, False, True]"]


@pytest.mark.parametrize("level", ["warning", "error"])
def test_access_log_is_written_where_nothing_else_is(level):
    write = 'log.write(AnsweredRequest("POST", "/v2/models/m/infer", "oip", 200, 0.1))\n'
    (line,) = run(f"{EVERY}{write}import logging\nlogging.info('x')", level=level)
    assert json.loads(line).items() >= {"severity": "INFO", "dialect": "oip", "code": 200}.items()


# What nobody reads


@pytest.fixture
def pipe():
    """Its reading end, and its writing one."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as reader, os.fdopen(writing, "wb") as writer:
        yield reader, writer


def make_logger(handler):
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    told_by = logging.Logger("bounded")
    told_by.addHandler(handler)
    return told_by


def test_who_logs_does_not_wait_for_who_reads(pipe, caplog):
    reader, writer = pipe
    handler = BoundedHandler(writer.fileno(), most=20)
    told_by = make_logger(handler)
    told_by.info("x" * 2**20)  # more than a pipe holds
    assert select.select([reader], [], [], 30)[0], "some of it is there"
    for number in range(100):
        told_by.info("%d", number)
    assert handler.dropped == 90
    for number in range(5):
        told_by.error("%d", number)
    assert handler.dropped == 90, "there is room for errors"
    lines = []
    reading = threading.Thread(target=lambda: lines.extend(reader.read().decode().splitlines()))
    reading.start()
    handler.flush()
    writer.close()
    reading.join()
    told = "WARNING 90 lines of the log were dropped: nobody took them in time"
    assert lines[1:] == [told, *(f"INFO {number}" for number in range(10)), *(f"ERROR {number}" for number in range(5))]
    assert caplog.messages == []  # it tells itself


def test_who_logs_does_not_miss_who_has_gone(pipe):
    reader, writer = pipe
    handler = BoundedHandler(writer.fileno())
    reader.close()
    make_logger(handler).info("x")
    handler.flush()
    assert handler.dropped == 1


def test_all_lines_are_there_when_the_process_ends():
    program = "import logging\nfor number in range(1000): logging.info('%d', number)\nraise KeyError('z')"
    records = [json.loads(line) for line in run(program, bounded=True)]
    assert [record["message"] for record in records[:-1]] == [str(number) for number in range(1000)]
    assert "KeyError: 'z'" in records[-1]["exception"]


def test_process_whose_log_nobody_reads_ends():
    program = "import logging\nfor _ in range(3): logging.error('x' * 2**20)\n"
    with subprocess.Popen(command(program, bounded=True), stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_tally_tells_at_once_and_then_once_in_a_while(caplog):
    now = [5.0]
    tally = Tally(logging.getLogger("t").warning, "%d lost", seconds=60, clock=lambda: now[0])
    for moment, count in ((5, 2), (6, 3), (64.9, 4), (65, 1), (70, 6), (200, 1)):
        now[0] = moment
        tally.add(count)
    assert caplog.messages == ["2 lost", "8 lost", "7 lost"]
