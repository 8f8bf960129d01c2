"""Lines out of pieces of bytes, with where each begins and ends. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Span:
    """One line without its end (LF or CRLF)."""

    start: int
    end: int  # where the next one begins
    data: bytes | None  # None: it is longer than a line may be


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
