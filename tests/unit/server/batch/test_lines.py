"""Lines and shards: each line exactly once, in order, however the bytes are cut."""

import asyncio
import csv
import gzip
import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pierhead_server.batch import source as sources
from pierhead_server.batch.errors import InputInvalidError
from pierhead_server.batch.lines import Joiner, Span, Splitter, find_wide_encoding, is_open
from pierhead_server.batch.plan import (
    File,
    Plan,
    Position,
    compute_segments,
    count_bytes,
    end_of,
    split_pattern,
)
from pierhead_server.batch.source import Source
from pierhead_server.batch.storage import Block

START = Position(0, 0)


class Memory:
    """As much of Storage as a Source needs."""

    def __init__(self, objects):
        self.objects = objects

    async def read(self, uri, start, end):
        await asyncio.sleep(0)
        data = self.objects[uri]
        return Block(data[start:end], len(data), "tag")


def make_plan(contents, shards=1):
    files = [
        File(str(number), len(data), "tag", gzip=data.startswith(b"\x1f\x8b")) for number, data in enumerate(contents)
    ]
    return Plan(files, shards, {}), Memory({str(number): data for number, data in enumerate(contents)})


def read(plan, memory, shard, start=START, form="jsonl"):
    async def collect():
        return [line async for line in Source(memory, plan, form).lines(compute_segments(plan, shard), start)]

    return asyncio.run(collect())


def split(content):
    """The lines that a person would count."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in lines if line.strip()]


contents = st.lists(
    st.lists(st.sampled_from([b"", b"\n", b"\r\n", b"a", b"bc", b" ", b"\xff", b"x" * 40]), max_size=30).map(b"".join),
    max_size=4,
)


@given(contents=contents, shards=st.integers(1, 7), block=st.integers(1, 64), zipped=st.sets(st.integers(0, 3)))
def test_each_line_is_in_one_shard_and_in_order(contents, shards, block, zipped):
    stored = [gzip.compress(data) if number in zipped else data for number, data in enumerate(contents)]
    plan, memory = make_plan(stored, shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", block)
        # A gzip file belongs to one shard as a whole, so that order holds within the shards' files.
        found = [line for shard in range(shards) for line in read(plan, memory, shard)]
    assert [line.data for line in sorted(found, key=lambda line: line.position)] == [
        line for data in contents for line in split(data)
    ]
    assert [line.position for line in found] == sorted(line.position for line in found)


@given(contents=contents, shards=st.integers(1, 4), zipped=st.sets(st.integers(0, 3)), data=st.data())
def test_reading_goes_on_from_any_line(contents, shards, zipped, data):
    stored = [gzip.compress(each) if number in zipped else each for number, each in enumerate(contents)]
    plan, memory = make_plan(stored, shards)
    shard = data.draw(st.integers(0, shards - 1))
    lines = read(plan, memory, shard)
    place = data.draw(st.integers(0, len(lines)))
    start = lines[place - 1].next if place else START
    assert read(plan, memory, shard, start) == lines[place:]
    assert read(plan, memory, shard, end_of(plan)) == []


@given(content=st.binary(max_size=200), sizes=st.lists(st.integers(1, 20), min_size=1), most=st.integers(1, 30))
def test_lines_are_the_same_in_pieces_of_any_size(content, sizes, most):
    splitter, spans, at = Splitter(0, most), [], 0
    while at < len(content):
        size = sizes[len(spans) % len(sizes)]
        spans += splitter.feed(content[at : at + size])
        at += size
    spans += splitter.finish()
    assert b"".join(content[span.start : span.end] for span in spans) == content
    for span in spans:
        line = content[span.start : span.end].removesuffix(b"\n")
        assert span.data == (line.removesuffix(b"\r") if len(line) <= most else None)


def test_bytes_of_shards_sum_up():
    plan, _ = make_plan([b"x" * 10, b"", b"y" * 7], 3)
    segments = [compute_segments(plan, shard) for shard in range(3)]
    assert sum(count_bytes(plan, each) for each in segments) == 17
    assert [count_bytes(plan, each, end_of(plan)) for each in segments] == [
        count_bytes(plan, each) for each in segments
    ]
    assert count_bytes(plan, segments[0], Position(0, 3)) == 3
    assert count_bytes(plan, segments[0], START) == 0


def test_csv_header_is_known_in_every_shard():
    plan, memory = make_plan([b"\xef\xbb\xbfa,b\r\n" + b"1,2\n" * 20], 5)
    lines = [line for shard in range(5) for line in read(plan, memory, shard, form="csv")]
    assert [line.data for line in lines] == [b"1,2"] * 20
    assert {tuple(line.columns) for line in lines} == {("a", "b")}


@pytest.mark.parametrize("spoil", [lambda data: data[:-4], lambda data: data[:20] + b"\0\0\0" + data[23:]])
def test_spoilt_gzip_file_is_told(spoil):
    plan, memory = make_plan([spoil(gzip.compress(b"line\n" * 1000))])
    with pytest.raises(InputInvalidError, match=r"^0: not a whole gzip file"):
        read(plan, memory, 0)


def test_gzip_files_behind_one_another_are_one():
    plan, memory = make_plan([gzip.compress(b"a\nb") + gzip.compress(b"c\nd")])
    assert [line.data for line in read(plan, memory, 0)] == [b"a", b"bc", b"d"]


def test_zeros_pad_a_gzip_file():
    plan, memory = make_plan([gzip.compress(b"a\nb") + b"\0" * 10 + gzip.compress(b"c\nd") + b"\0" * 1000])
    assert [line.data for line in read(plan, memory, 0)] == [b"a", b"bc", b"d"]


def test_file_that_changed_is_told():
    plan, memory = make_plan([b"a\n"])
    memory.objects["0"] = b"a\nb\n"
    with pytest.raises(InputInvalidError, match=r"^0: it was changed after the job had begun"):
        read(plan, memory, 0)


@pytest.mark.parametrize(
    ("pattern", "folder", "matching", "others"),
    [
        ("gs://b/in/*.jsonl", "gs://b/in", ["gs://b/in/a.jsonl"], ["gs://b/in/a/b.jsonl", "gs://b/in/a.jsonl.gz"]),
        ("gs://b/*/part-*", "gs://b", ["gs://b/x/part-1"], ["gs://b/part-1", "gs://b/x/y/part-1"]),
    ],
)
def test_wildcards_stay_within_a_folder(pattern, folder, matching, others):
    found, wanted = split_pattern(pattern)
    assert found == folder
    assert all(map(wanted.fullmatch, matching))
    assert not any(map(wanted.fullmatch, others))


FIELDS = st.lists(st.sampled_from(["a", '"', ",", "\n", "\r\n", " ", "\u2028", "\u00fc"]), max_size=6).map("".join)


@given(rows=st.lists(st.lists(FIELDS, min_size=2, max_size=3), max_size=8), block=st.integers(1, 64))
def test_rows_of_csv_are_those_that_were_written(rows, block):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = b"a,b\n" + text.getvalue().encode()
    plan, memory = make_plan([content])
    plan = Plan([msgspec.structs.replace(plan.files[0], whole=True)], 1, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_BYTES", block)
        lines = read(plan, memory, 0, form="csv")
    # A newline inside of quotes is LF whatever it was; a row of blanks alone is an empty line.
    expected = [[field.replace("\r\n", "\n") for field in row] for row in rows]
    assert [next(csv.reader([line.data.decode()], strict=True)) for line in lines] == expected
    for line in lines:
        assert read(plan, memory, 0, line.next, form="csv") == [one for one in lines if one.position > line.position]


@pytest.mark.parametrize(
    ("line", "inside", "opened"),
    [
        (b"a,b", False, False), (b'"', False, True), (b'"a"', False, False), (b'a"b', False, False), (b'a,"b', False, True),
        (b'"a""', False, True), (b'"a"",b', False, True), (b'"a","', False, True), (b"a", True, True), (b'a"', True, False),
        (b'a""', True, True), (b'"', True, False), (b'","', True, True), (b"", True, True), (b"", False, False),
    ],
)  # fmt: skip
def test_quotes_are_followed(line, inside, opened):
    assert is_open(line, inside=inside) is opened


@pytest.mark.parametrize("most", [7, 1000])
def test_quote_that_is_never_closed_takes_no_more_than_a_line(most):
    given = [b"1,2", b'"ab', b"cde", b'"x', b"fgh", b'3,"', b"ijk", b"lmn"]
    joiner, lines = Joiner(most=most), [Span(4 * n, 4 * n + 4, data) for n, data in enumerate(given)]
    rows = [row for line in lines for row in joiner.feed(line)] + list(joiner.finish())
    closed = [b"1,2", b'"ab\ncde\n"x', b"fgh", b'3,"', b"ijk", b"lmn"]
    assert [row.data for row in rows] == (given if most == 7 else closed)
    assert [row.start for row in rows] == [0, *(row.end for row in rows[:-1])]


def test_row_has_no_more_lines_than_anybody_writes(monkeypatch):
    monkeypatch.setattr("pierhead_server.batch.lines.MOST_ROW_LINES", 3)
    joiner = Joiner()
    assert [row.data for n in range(5) for row in joiner.feed(Span(n, n + 1, b'"' if n == 0 else b""))] == [
        b'"',
        b"",
        b"",
        b"",
        b"",
    ]


def test_rows_behind_a_quote_that_is_not_closed_are_read():
    plan, memory = make_plan([b'a,b\n1,2\n"3,4\n5,6\n7,"8\n9"\n'])
    assert [line.data for line in read(plan, memory, 0, form="csv")] == [b"1,2", b'"3,4', b"5,6", b'7,"8', b'9"']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_known(encoding):
    text = '{"a": "\u043a"}'.encode(encoding)
    assert find_wide_encoding(text) == ("UTF-32" if "32" in encoding else "UTF-16")


@pytest.mark.parametrize(
    "head", [b"", b"a", b"\xef\xbb\xbf{", b"\0", b"\0\0\0\0", "\u043a\u043e\u0442".encode(), b"a\0bc"]
)
def test_utf_8_is_no_other_encoding(head):
    assert find_wide_encoding(head) is None
