"""The files that a job's owner reads: predictions in each format, and errors. Pure but for their sinks."""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, cast

import msgspec

from pierhead_server.batch.document import OutputFormat
from pierhead_server.batch.storage import Sink

PREDICTION = "prediction"
_ROWS = 1000  # of a CSV or Parquet file, written at once
_GROUP_ROWS = 10_000  # what a Parquet file's writer holds


def write_lines(sink: Sink, lines: Iterable[bytes]) -> None:
    """JSON Lines, as parts hold them."""
    for line in lines:
        sink.write(line)


def write_predictions(form: OutputFormat, sink: Sink, lines: Iterable[bytes], name: str) -> None:
    """A predictions file; CSV and Parquet have two columns of JSON, `name` and the prediction."""
    match form:
        case "jsonl":
            write_lines(sink, lines)
        case "csv":
            _write_csv(sink, lines, name)
        case "parquet":
            _write_parquet(sink, lines, name)


def _write_csv(sink: Sink, lines: Iterable[bytes], name: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow((name, PREDICTION))
    for rows in _read_rows(lines, name):
        writer.writerows(rows)
        sink.write(text.getvalue().encode())
        text.seek(0)
        text.truncate()
    sink.write(text.getvalue().encode())


def _write_parquet(sink: Sink, lines: Iterable[bytes], name: str) -> None:
    # Imported here: nothing else needs it.
    from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema
    from arro3.io import write_parquet

    kind = DataType.utf8()
    schema = Schema([Field(column, kind) for column in (name, PREDICTION)])

    def batches() -> Iterator[RecordBatch]:
        for rows in _read_rows(lines, name):
            columns = zip(*rows, strict=True)
            yield RecordBatch([Array(list(column), kind) for column in columns], schema=schema)

    reader = RecordBatchReader.from_batches(schema, batches())
    # It is written from its beginning to its end, so that a sink is enough.
    write_parquet(reader, cast(IO[bytes], _File(sink)), compression="snappy", max_row_group_size=_GROUP_ROWS)


def _read_rows(lines: Iterable[bytes], name: str) -> Iterator[list[tuple[str, str]]]:
    rows = (msgspec.json.decode(line, type=dict[str, msgspec.Raw]) for line in lines)
    texts = ((bytes(row[name]).decode(), bytes(row[PREDICTION]).decode()) for row in rows)
    while some := list(islice(texts, _ROWS)):
        yield some


class _File:
    """A sink as the Parquet writer takes it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        """The sink is flushed by its end."""

    def seek(self, *_: int) -> int:
        """Asked for, and never called."""
        raise io.UnsupportedOperation
