"""What a line of each format asks for, and how it is refused."""

import json

import pytest
from pierhead_server.batch.errors import LineError
from pierhead_server.batch.instances import MOST_QUOTED_BYTES, Instance, quote_line, read_columns, read_instance


def test_json_line_is_told_as_it_came():
    line = b' {"content": "gs://b/x.jpg",  "mimeType": "image/jpeg"}\t'
    assert read_instance("jsonl", line) == Instance(
        line.strip(), {"content": "gs://b/x.jpg", "mimeType": "image/jpeg"}, "gs://b/x.jpg"
    )


@pytest.mark.parametrize(
    "line", [b'{"content": "aGk="}', b'"gs://b/x.jpg"', b"5", b'{"b64": "aGk="}', b'{"content": 5}', b"[1, 2]"]
)
def test_all_but_uris_goes_to_the_model_as_it_is(line):
    instance = read_instance("jsonl", line)
    assert (instance.value, instance.picture) == (json.loads(line), None)


def test_numbers_that_are_none_are_told_as_null():
    assert read_instance("jsonl", b"[NaN, 1]").told == b"[null,1]"


def test_file_list_guesses_the_type():
    instance = read_instance("file-list", b" s3://b/a b.png ")
    assert instance.value == {"content": "s3://b/a b.png", "mimeType": "image/png"}
    assert instance.picture == "s3://b/a b.png"
    assert read_instance("file-list", b"pvc://data/x").value == {"content": "pvc://data/x"}


def test_csv_row_is_an_object():
    columns = read_columns(b'name,"size, cm",code,content')
    instance = read_instance("csv", b'"a ""b""",1.5e1,007,gs://b/x', columns)
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
        ("csv", b'1,"2', "a newline is inside of a field: that is not supported"),
        ("csv", b"1,2\r3", "a newline is inside of a field: that is not supported"),
    ],
)
def test_line_that_is_no_instance_is_refused(form, line, message):
    with pytest.raises(LineError) as refused:
        read_instance(form, line, ["a", "b"])
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
