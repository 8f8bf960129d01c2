"""What a worker remembers over its death, so that a line that kills it is found and passed.

One note lies in storage while a worker runs. A worker that finds one knows that the one before it died, and takes the
lines that it may have had in its hands one by one, each written into the note first.

The note tells of buckets that did not answer, too: a storage that is away for a while ends a worker, and the next one
goes on, but a bucket that no worker ever reached is the mistake of the lines that name it.
"""

import logging

import msgspec

from pierhead_server.batch.plan import Position
from pierhead_server.batch.storage import Storage

logger = logging.getLogger(__name__)

MOST_DEATHS = 2  # at a line alone, until it is passed
MOST_OUTAGES = 5  # of a bucket or a storage that never answered, until its pictures are their lines' errors


class Note(msgspec.Struct):
    """What earlier workers left: how often each line was begun alone and not ended, and each bucket was away."""

    begun: dict[str, int] = {}
    away: dict[str, int] = {}  # workers that ended because pictures' bucket, or all of a storage, did not answer
    left: bool = False  # whether the one before this one left in peace


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
        self._away: set[str] = set()  # buckets that did not answer this worker

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
        if self._note.left:
            self._note.left = False
            await self._write()
            return
        self._left = self._suspects
        logger.warning("the worker before this one died: %d lines are taken one by one", self._left)

    async def take(self, line: Position) -> int:
        """Before a line is begun alone: how many workers died at it. From MOST_DEATHS on it is to be passed."""
        self._begun = f"{line.file}-{line.offset}"
        deaths = self._note.begun.get(self._begun, 0)
        self._note.begun[self._begun] = deaths + 1
        await self._write()
        return deaths

    async def end(self) -> None:
        """The line that was taken has ended, however."""
        if self._begun:
            self._note.begun.pop(self._begun)
            self._begun = None
        self._left -= 1
        if not self._left:
            await self._write()

    def report_away(self, bucket: str) -> bool:
        """A bucket of pictures does not answer, after retries; whether enough workers have ended of that.

        Of the storage, too: without credentials none of its buckets ever answers.
        """
        places = (bucket, _find_storage(bucket))
        for place in set(places) - self._away:
            self._note.away[place] = self._note.away.get(place, 0) + 1
        self._away.update(places)
        return any(self._note.away.get(place, 0) > MOST_OUTAGES for place in places)

    def report_there(self, bucket: str) -> None:
        """A bucket of pictures answered."""
        for place in (bucket, _find_storage(bucket)):
            self._note.away.pop(place, None)

    async def take_back(self) -> None:
        """The worker leaves in peace: nothing that it holds is to blame."""
        if not self._there:
            return
        if self._begun:
            self._note.begun[self._begun] -= 1
        if not (self.active or self._note.begun or self._note.away):
            await self.remove()
            return
        self._note.left = not (self.active or self._note.begun)
        await self._write()

    async def remove(self) -> None:
        """Nothing is in hand any more."""
        self._there = False
        await self._storage.delete([self._uri])

    async def _write(self) -> None:
        await self._storage.replace(self._uri, msgspec.json.encode(self._note))


def _find_storage(bucket: str) -> str:
    return bucket.partition("://")[0] + "://"
