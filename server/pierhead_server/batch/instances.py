"""A line of the input becomes an instance. Pure."""

import csv
import mimetypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import msgspec

from pierhead_server.batch.document import WHOLE, InputFormat, InstanceConfig
from pierhead_server.batch.errors import INVALID_ARGUMENT, LineError
from pierhead_server.batch.lines import MAX_LINE_BYTES
from pierhead_server.batch.shaping import INSTANCE, KEY, read_key, shape
from pierhead_server.errors import ApiError, InternalError
from pierhead_server.protocol import encode_json, parse_json

BOM = b"\xef\xbb\xbf"
MOST_QUOTED_BYTES = 64 * 1024  # of a line that is no instance, in the errors file

_BLANKS = " \t\r"  # at a line's ends; a name may have others there
_URI = re.compile(r"(gs|s3|az|https?|file|pvc)://.+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Instance:
    """What one line asks for."""

    told: bytes  # as JSON: how the output calls it
    value: object  # for the model
    picture: str | None = None  # the URI whose bytes become the value's `content`
    name: str = INSTANCE  # of `told` in the output


@dataclass(frozen=True)
class Reading:
    """How lines become instances."""

    form: InputFormat
    config: InstanceConfig = WHOLE


def read_instance(reading: Reading, line: bytes, columns: Sequence[str] = ()) -> Instance:
    """Parse a line that is not empty; of a CSV file, by its columns. Raises LineError."""
    told, parsed = _parse(reading.form, line, columns)
    config = reading.config
    try:
        value = shape(parsed, config, reading.form)
        if config.key_field:
            return Instance(read_key(parsed, config), value, _picture_of(value), KEY)
    except LineError as error:
        raise LineError(error.code, str(error), told) from None
    return Instance(told, value, _picture_of(value))


def _parse(form: InputFormat, line: bytes, columns: Sequence[str]) -> tuple[bytes, object]:
    """The line as JSON, and as a value."""
    if form == "jsonl":
        return _read_json(line)
    text = decode(line)
    value: object = _read_row(text, columns) if form == "csv" else _read_uri(text.strip(_BLANKS))
    return encode_json(value), value


def decode(line: bytes) -> str:
    """Raises LineError."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(INVALID_ARGUMENT, f"the line is not UTF-8 (byte {error.start})") from None


def _read_json(line: bytes) -> tuple[bytes, object]:
    try:
        value = parse_json(line)
    except ApiError as error:
        raise LineError(INVALID_ARGUMENT, str(error).replace("the body", "the line", 1)) from None
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return _write(value), value  # NaN and Infinity are numbers here, and none in JSON
    told = line.strip()
    # A newline of another kind, which JSON takes for a blank, would be one of the output.
    return (msgspec.json.format(told, indent=-1) if b"\r" in told else told), value


def _write(value: object) -> bytes:
    try:
        return encode_json(value)
    except InternalError:  # what can be read can be written, but for its depth
        raise LineError(INVALID_ARGUMENT, "the line is nested too deeply") from None


def _picture_of(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else None
    return content if isinstance(content, str) and _URI.fullmatch(content) else None


def _read_uri(text: str) -> dict[str, object]:
    if not _URI.fullmatch(text):
        raise LineError(INVALID_ARGUMENT, f"not the URI of a file: {text[:200]!r}")
    # Of the name's end alone: by itself mimetypes would parse it as a URL, which not every name is.
    path = text.partition("?")[0] if text.startswith("http") else text
    kind = mimetypes.guess_type(f"x{PurePosixPath(path).suffix}")[0]
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
        if "unexpected end" in cause:
            cause = "a quote is not closed"
        elif "new-line" in cause:
            cause = "a newline is inside of a field without quotes"
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
