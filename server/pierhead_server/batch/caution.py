"""What a worker remembers over its death, so that a line that kills it is found and passed.

One note lies in storage while a worker runs. A worker that finds one knows that the one before it died, and takes the
lines that it may have had in its hands one by one, each written into the note first.
"""

import logging

import msgspec

from pierhead_server.batch.plan import Position
from pierhead_server.batch.storage import Storage

logger = logging.getLogger(__name__)

MOST_DEATHS = 2  # at a line alone, until it is passed


class Note(msgspec.Struct):
    """Of the lines that were begun alone and not ended, how often that was."""

    begun: dict[str, int] = {}


class Caution:
    """One shard's note, and how many lines are still to be taken one by one."""

    def __init__(self, storage: Storage, uri: str, suspects: int) -> None:
        self._storage = storage
        self._uri = uri
        self._suspects = suspects
        self._note = Note()
        self._begun: str | None = None  # the line that is in hand alone
        self._left = 0
        self._there = False  # whether this worker's note is

    @property
    def active(self) -> bool:
        """Whether lines are taken one by one."""
        return self._left > 0

    async def begin(self) -> None:
        """Write the note, after a look at the one that may be there."""
        self._there = True
        try:
            self._note = msgspec.json.decode(await self._storage.read_all(self._uri), type=Note)
        except FileNotFoundError:
            await self._write()
            return
        except msgspec.DecodeError:
            logger.warning("%s is no note: it is written anew", self._uri)
        self._left = self._suspects
        logger.warning("the worker before this one died: %d lines are taken one by one", self._left)

    async def take(self, line: Position) -> str | None:
        """Before a line is begun alone: why it shall not be, or None."""
        key = f"{line.file}-{line.offset}"
        deaths = self._note.begun.get(key, 0)
        if deaths >= MOST_DEATHS:
            return f"the worker died {deaths} times at this line"
        self._note.begun[key] = deaths + 1
        self._begun = key
        await self._write()
        return None

    async def end(self) -> None:
        """The line that was taken has ended, however."""
        if self._begun:
            self._note.begun.pop(self._begun)
            self._begun = None
        self._left -= 1
        if not self._left:
            await self._write()

    async def take_back(self) -> None:
        """The worker leaves in peace: nothing that it holds is to blame."""
        if not self._there:
            return
        if self._begun:
            self._note.begun[self._begun] -= 1
        if self.active or self._note.begun:
            await self._write()
        else:
            await self.remove()

    async def remove(self) -> None:
        """Nothing is in hand any more."""
        self._there = False
        await self._storage.delete([self._uri])

    async def _write(self) -> None:
        await self._storage.replace(self._uri, msgspec.json.encode(self._note))
