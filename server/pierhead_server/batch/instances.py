"""A line of the input becomes an instance. Pure."""

import csv
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pierhead_server.batch.document import InputFormat
from pierhead_server.batch.errors import INVALID_ARGUMENT, LineError
from pierhead_server.batch.lines import MAX_LINE_BYTES
from pierhead_server.errors import ApiError
from pierhead_server.protocol import encode_json, parse_json

BOM = b"\xef\xbb\xbf"
MOST_QUOTED_BYTES = 64 * 1024  # of a line that is no instance, in the errors file

_URI = re.compile(r"(gs|s3|az|https?|file|pvc)://.+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Instance:
    """What one line asks for."""

    told: bytes  # as JSON: how the output calls it
    value: object  # for the model
    picture: str | None = None  # the URI whose bytes become the value's `content`


def read_instance(form: InputFormat, line: bytes, columns: Sequence[str] = ()) -> Instance:
    """Parse a line that is not empty; of a CSV file, by its columns. Raises LineError."""
    if form == "jsonl":
        return _read_json(line)
    text = decode(line)
    if form == "csv":
        value: object = _read_row(text, columns)
    else:
        value = _read_uri(text.strip())
    return Instance(encode_json(value), value, _picture_of(value))


def decode(line: bytes) -> str:
    """Raises LineError."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(INVALID_ARGUMENT, f"the line is not UTF-8 (byte {error.start})") from None


def _read_json(line: bytes) -> Instance:
    try:
        value = parse_json(line)
    except ApiError as error:
        raise LineError(INVALID_ARGUMENT, str(error).replace("the body", "the line", 1)) from None
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
        told = line.strip()
    except (msgspec.DecodeError, RecursionError):
        told = encode_json(value)  # NaN and Infinity are numbers here, and none in JSON
    return Instance(told, value, _picture_of(value))


def _picture_of(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else None
    return content if isinstance(content, str) and _URI.fullmatch(content) else None


def _read_uri(text: str) -> dict[str, object]:
    if not _URI.fullmatch(text):
        raise LineError(INVALID_ARGUMENT, f"not the URI of a file: {text[:200]!r}")
    kind = mimetypes.guess_type(text)[0]
    return {"content": text, "mimeType": kind} if kind else {"content": text}


def read_columns(line: bytes) -> list[str]:
    """A CSV file's first line. Raises LineError."""
    columns = _split_row(decode(line))
    if len(set(columns)) < len(columns) or not all(columns):
        raise LineError(INVALID_ARGUMENT, "the header must name every column, and each name once")
    return columns


def _read_row(text: str, columns: Sequence[str]) -> dict[str, object]:
    fields = _split_row(text)
    if len(fields) != len(columns):
        raise LineError(INVALID_ARGUMENT, f"{len(fields)} fields, but the header names {len(columns)}")
    return {name: _read_field(field) for name, field in zip(columns, fields, strict=True)}


def _split_row(text: str) -> list[str]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        cause = str(error)
        if "unexpected end" in cause or "new-line" in cause:
            cause = "a quote is not closed, or a newline is inside of a field: that is not supported"
        raise LineError(INVALID_ARGUMENT, f"not a row of CSV: {cause}") from None


def _read_field(field: str) -> object:
    if not _NUMBER.fullmatch(field):
        return field
    try:
        return msgspec.json.decode(field)
    except (msgspec.DecodeError, ValueError):  # too many digits
        return field


def quote_line(line: bytes) -> bytes:
    """A line that is no instance, as a JSON string for the errors file."""
    text = line[:MOST_QUOTED_BYTES].decode("utf-8", "replace")
    if len(line) > MOST_QUOTED_BYTES:
        text += f"... ({len(line)} bytes)"
    return msgspec.json.encode(text)


def name_line(uri: str, offset: int) -> bytes:
    """A line that nobody holds, for the errors file."""
    return msgspec.json.encode(f"the line at byte {offset} of {uri}")
