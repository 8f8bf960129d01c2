"""Lines and CSV's rows out of pieces of bytes, with where each begins and ends. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 1024 * 1024
MOST_ROW_LINES = 100_000  # of one row of CSV


@dataclass(frozen=True)
class Span:
    """One line without its end (LF or CRLF)."""

    start: int
    end: int  # where the next one begins
    data: bytes | None  # None: it is longer than a line may be


ENCODING_BYTES = 4  # that tell it
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def find_wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by a text's byte order mark or else by its zeros; None for what may be UTF-8."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    zeros = [not byte for byte in head[:ENCODING_BYTES]]
    return marked or ("UTF-16" if zeros in ([False, True] * 2, [True, False] * 2) else None)


class Splitter:
    """Takes a file's bytes from some offset on, piece by piece, and gives the lines that are whole."""

    def __init__(self, offset: int = 0, most: int = MAX_LINE_BYTES) -> None:
        self._start = offset  # of the line that is not whole yet
        self._most = most
        self._held: list[bytes] = []
        self._size = 0  # of that line so far

    def feed(self, piece: bytes) -> Iterator[Span]:
        """The lines that end in this piece."""
        begin = 0
        while (end := piece.find(b"\n", begin)) >= 0:
            self._hold(piece[begin:end])
            yield self._take(1)
            begin = end + 1
        self._hold(piece[begin:])

    def finish(self) -> Iterator[Span]:
        """The last line, where the file does not end in a newline."""
        if self._size:
            yield self._take(0)

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            self._held.clear()
        elif part:
            self._held.append(part)

    def _take(self, newline: int) -> Span:
        data = b"".join(self._held) if self._size <= self._most else None
        if data is not None and data.endswith(b"\r"):
            data = data[:-1]
        span = Span(self._start, self._start + self._size + newline, data)
        self._start, self._size = span.end, 0
        self._held.clear()
        return span


_QUOTED = re.compile(rb'(?:[^"]++|"")*+"')  # from inside of a field's quotes to behind them


def is_open(line: bytes, inside: bool) -> bool:
    """Whether a line of CSV ends inside of a field's quotes; `inside`: it begins there."""
    at = 0
    if not inside:
        if not line.startswith(b'"'):
            at = line.find(b',"') + 1
            if not at:
                return False
        at += 1
    while end := _QUOTED.match(line, at):
        at = line.find(b',"', end.end()) + 2
        if at < 2:
            return False
    return True


class Joiner:
    """Puts together the lines of a CSV file's row in which a newline is inside of quotes.

    A quote that is not closed within a row's bounds is its own line's error: those behind it are rows by themselves.
    """

    def __init__(self, most: int = MAX_LINE_BYTES) -> None:
        self._most = most
        self._held: list[Span] = []
        self._size = 0

    def feed(self, line: Span) -> Iterator[Span]:
        """The row that ends with this line, or the rows, if any do."""
        if line.data is None or (not self._held and b'"' not in line.data):
            yield from self.finish()
            yield line
            return
        opened = is_open(line.data, inside=bool(self._held))
        self._held.append(line)
        self._size += len(line.data) + 1
        if self._size > self._most + 1 or len(self._held) > MOST_ROW_LINES:
            yield from self.finish()
        elif not opened:
            yield self._join()

    def finish(self) -> Iterator[Span]:
        """The lines of a row whose quotes were not closed."""
        held, self._held, self._size = self._held, [], 0
        yield from held

    def _join(self) -> Span:
        rows = list(self.finish())
        return Span(rows[0].start, rows[-1].end, b"\n".join(row.data for row in rows if row.data is not None))
