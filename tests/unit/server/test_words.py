"""What a process says on stderr: nothing of it is lost in the log, and its end is kept."""

import json
import os

import pytest
from pierhead_server import words as module
from pierhead_server.words import MOST_CHARACTERS, Words


@pytest.fixture
def log(tmp_path, monkeypatch):
    """What this process wrote to its stderr, once it is asked."""
    with (tmp_path / "log").open("wb") as file:
        monkeypatch.setattr(module, "_STDERR", file.fileno())
        yield (tmp_path / "log").read_bytes


@pytest.fixture
def words():
    words = Words()
    yield words
    words.close()


def say(words, data):
    """As the child does, at most what a pipe holds."""
    os.write(words._writer, data)
    return words.hear()


def test_what_is_said_is_passed_on_in_whole_lines(words, log):
    assert say(words, b"one\ntw")
    assert log() == b"one\n"
    assert say(words, b"o\nthree")
    assert log() == b"one\ntwo\n"
    words.leave_to_child()
    assert not words.hear()
    assert log() == b"one\ntwo\nthree"
    assert not words.hear()


def test_nothing_is_waited_for(words, log):
    assert words.hear()
    assert log() == b""
    assert words.last() == ""
    words.leave_to_child()


def test_line_without_an_end_is_passed_on_in_pieces(words, log):
    for _ in range(20):
        say(words, b"x" * 10_000)
    assert len(log()) > 100_000
    words.leave_to_child()
    words.hear()
    assert log() == b"x" * 200_000


def test_log_that_nobody_reads_is_no_error(words, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(module, "_STDERR", writer)
    assert say(words, b"one\n")
    assert words.last() == "one"
    os.close(writer)
    words.leave_to_child()


def log_line(**fields):
    return json.dumps({"time": "2026-11-22T12:00:00.123Z", "severity": "ERROR", "pid": 7, **fields})


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("", ""),
        ("terminate called after throwing\n  what():  boom\n", "terminate called after throwing what(): boom"),
        (log_line(message="going down"), "going down"),
        (log_line(message="it ended", exception="Traceback ...\n  File x\nSystemExit: 3"), "SystemExit: 3"),
        ('{"not": "a log line"}', '{"not": "a log line"}'),
        ("[" * 5000, "[" * MOST_CHARACTERS),
        ("\x1b[31mred\x00\tend", "[31mred end"),
        ("x" * 7000 + " the end", ("x" * 7000 + " the end")[-MOST_CHARACTERS:]),
        (b"\xff no text".decode("latin-1"), "\xff no text"),
    ],
)
def test_last_words_are_one_line_for_people(words, log, said, last):
    say(words, said.encode())
    assert words.last() == last
    words.leave_to_child()


def test_what_is_kept_is_bounded(words, log):
    for number in range(1000):
        say(words, b"%d " % number * 100)
    assert len(words._kept) == module._KEPT_BYTES
    assert words.last().endswith("999 999")
    words.leave_to_child()
