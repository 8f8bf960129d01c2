"""What a process says on stderr: passed on to the log, and its end kept for when it dies."""

import contextlib
import os

import msgspec

MOST_CHARACTERS = 512  # of last words
_STDERR = 2
_READ_BYTES = 64 << 10  # what a pipe holds
_MOST_LINE_BYTES = 64 << 10  # until a line is passed on that does not end
_KEPT_BYTES = 8 << 10


class Words:
    """One child's stderr, as its parent hears it."""

    def __init__(self, reader: int | None = None) -> None:
        """`reader` is of a child that is there already."""
        self.reader, self._writer = os.pipe() if reader is None else (reader, -1)
        os.set_blocking(self.reader, False)  # a child of the child may keep it open for ever
        self._line = b""  # begun
        self._kept = b""
        self._ended = False

    def take_stderr(self) -> None:
        """In the child: what it writes to stderr goes to the parent from now on."""
        os.dup2(self._writer, _STDERR)
        os.close(self._writer)
        os.close(self.reader)

    def leave_to_child(self) -> None:
        """In the parent, once the child is there."""
        os.close(self._writer)

    def hear(self) -> bool:
        """Pass on what has come; False at the end."""
        if self._ended:
            return False
        try:
            data = os.read(self.reader, _READ_BYTES)
        except BlockingIOError:
            return True
        self._kept = (self._kept + data)[-_KEPT_BYTES:]
        self._ended = not data
        # Whole lines: others write to the same stderr.
        lines, newline, self._line = (self._line + data).rpartition(b"\n")
        _write(lines + newline)
        if self._ended or len(self._line) > _MOST_LINE_BYTES:
            _write(self._line)
            self._line = b""
        return not self._ended

    def close(self) -> None:
        """Hear no more."""
        os.close(self.reader)

    def last(self) -> str:
        """What it said last, in one line."""
        lines = self._kept.decode(errors="replace").splitlines()
        text = " ".join(map(_read_line, lines))
        printable = "".join(character if character.isprintable() else " " for character in text)
        return " ".join(printable.split())[-MOST_CHARACTERS:].strip()


def _write(data: bytes) -> None:
    # A log that nobody reads any more is no reason to end.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(_STDERR, data) :]


class _Logged(msgspec.Struct):
    """A line of our own log."""

    message: str
    exception: str = ""


def _read_line(line: str) -> str:
    try:
        logged = msgspec.json.decode(line, type=_Logged)
    except (msgspec.DecodeError, RecursionError):
        return line
    return logged.exception.rstrip().rpartition("\n")[2] or logged.message
