"""What a line of each format asks for, and how it is refused."""

import json

import pytest
from pierhead_server.batch.errors import LineError
from pierhead_server.batch.instances import (
    MOST_QUOTED_BYTES,
    Instance,
    Reading,
    quote_line,
    read_columns,
    read_instance,
)

JSONL, CSV, LIST = Reading("jsonl"), Reading("csv"), Reading("file-list")


def test_json_line_is_told_as_it_came():
    line = b' {"content": "gs://b/x.jpg",  "mimeType": "image/jpeg"}\t'
    assert read_instance(JSONL, line) == Instance(
        line.strip(), {"content": "gs://b/x.jpg", "mimeType": "image/jpeg"}, "gs://b/x.jpg"
    )


@pytest.mark.parametrize(
    "line", [b'{"content": "aGk="}', b'"gs://b/x.jpg"', b"5", b'{"b64": "aGk="}', b'{"content": 5}', b"[1, 2]"]
)
def test_all_but_uris_goes_to_the_model_as_it_is(line):
    instance = read_instance(JSONL, line)
    assert (instance.value, instance.picture) == (json.loads(line), None)


def test_numbers_that_are_none_are_told_as_null():
    assert read_instance(JSONL, b"[NaN, 1]").told == b"[null,1]"


def test_file_list_guesses_the_type():
    instance = read_instance(LIST, b" s3://b/a b.png ")
    assert instance.value == {"content": "s3://b/a b.png", "mimeType": "image/png"}
    assert instance.picture == "s3://b/a b.png"
    assert read_instance(LIST, b"pvc://data/x").value == {"content": "pvc://data/x"}


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("gs://b/2024//\u043a\u043e\u0442 1.JPG", "image/jpeg"),
        ("gs://b/100%#+.png", "image/png"),
        ("https://a.example/x.webp?sig=1.jpg", "image/webp"),
        ("http://[", None),
        ("gs://b/x.[", None),
    ],
)
def test_type_is_guessed_of_any_name(uri, kind):
    value = read_instance(LIST, uri.encode()).value
    assert value == {"content": uri} | ({"mimeType": kind} if kind else {})


def test_name_keeps_what_only_looks_blank():
    assert read_instance(LIST, " gs://b/a\u00a0\u2028\r".encode()).picture == "gs://b/a\u00a0\u2028"


def test_line_is_told_on_one_line():
    told = read_instance(JSONL, b'{"a":\r[1,\r2], "b": "\xe2\x80\xa8"}').told
    assert b"\r" not in told
    assert json.loads(told) == {"a": [1, 2], "b": "\u2028"}


def test_csv_row_is_an_object():
    columns = read_columns(b'name,"size, cm",code,content')
    instance = read_instance(CSV, b'"a ""b""",1.5e1,007,gs://b/x', columns)
    assert instance.value == {"name": 'a "b"', "size, cm": 15.0, "code": "007", "content": "gs://b/x"}
    assert instance.picture == "gs://b/x"


@pytest.mark.parametrize(
    ("form", "line", "message"),
    [
        ("jsonl", b"{broken", "the line is not valid JSON"),
        ("jsonl", b"\xff", "the line is not UTF-8 (byte 0)"),
        ("jsonl", b"[" * 100_000, "the line is nested too deeply"),
        ("file-list", b"x.jpg", "not the URI of a file: 'x.jpg'"),
        ("file-list", b"gs://\xff", "the line is not UTF-8 (byte 5)"),
        ("csv", b"1", "1 fields, but the header names 2"),
        ("csv", b'1,"2', "a quote is not closed"),
        ("csv", b"1,2\r3", "a newline is inside of a field without quotes"),
        ("jsonl", b"[" * 500 + b"NaN" + b"]" * 500, "the line is nested too deeply"),
        ("jsonl", b'{"a": "\\ud800"}', "a string holds half a surrogate pair"),
        ("file-list", b"gs:/b/x", "not the URI of a file"),
    ],
)
def test_line_that_is_no_instance_is_refused(form, line, message):
    with pytest.raises(LineError) as refused:
        read_instance(Reading(form), line, ["a", "b"])
    assert refused.value.code == 3
    assert message in str(refused.value)


@pytest.mark.parametrize("line", [b"a,a", b"a,,b"])
def test_header_must_name_each_column_once(line):
    with pytest.raises(LineError, match="the header must name every column"):
        read_columns(line)


def test_long_line_is_quoted_in_part():
    quoted = json.loads(quote_line(b"\xff" + b"x" * MOST_QUOTED_BYTES))
    assert quoted.startswith("\ufffdxxx")
    assert quoted.endswith(f"... ({MOST_QUOTED_BYTES + 1} bytes)")
