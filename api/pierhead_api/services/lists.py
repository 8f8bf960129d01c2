"""Lists of any length: what a page needs is read, a page of Kubernetes at a time, and what it shows is converted."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, cmp_to_key
from itertools import groupby

from pierhead_operator.resources import Manifest
from pierhead_operator.schema import Resource

from pierhead_api import objects
from pierhead_api.errors import ExpiredError, FailedPreconditionError, InvalidArgumentError
from pierhead_api.listing import OF_NO_LIST, Key, ListRequest, Mark, Query, make_page, parse_query, read_mark
from pierhead_api.pages import PAGE, Ask, Page, ReadPage, find_next
from pierhead_api.services.session import Cluster, Manifests
from pierhead_api.wire import Body

# Pages of Kubernetes that one call reads of each kind, 1,000 objects: then it answers what it found, if anything.
MOST_PAGES = 4
# The same in an order that is not the names': the first may come last, so all are read.
MOST_ORDERED_PAGES = 40
# Of the objects of an answer, until it is made.
MOST_BYTES = 32 * 1024 * 1024
_AT_ONE_TURN = 20  # answers that are looked at, or made, before the event loop may go on
_BEGIN = ("", "")


async def _join_nothing(_: Manifests) -> None:
    pass


@dataclass(frozen=True)
class Listing:
    """What is listed: each object of these kinds is some answers, of which one is known by its `name`.

    `describe` gives of each answer what filters and orders look at, `convert` the whole. Before `convert` is asked,
    `join` reads what else it needs, of several objects at once; before `describe` where `joined` has a field that is
    looked at. With several kinds, objects of one name come together.
    """

    field: str  # of the answer
    kinds: Sequence[type[Resource]]
    filterable: Collection[str]
    describe: Callable[[Manifest], Iterable[Body]]
    convert: Callable[[Manifest, Body], Body]
    orderable: Collection[str] = ()
    join: Callable[[Manifests], Awaitable[None]] = _join_nothing
    joined: Collection[str] = ()


@dataclass(frozen=True)
class _Entry:
    """One answer, as far as it is known."""

    manifest: Manifest
    described: Body

    @property
    def key(self) -> tuple[str, str]:
        """Its place in the order of names: the object's, and its own behind the last slash."""
        return _name(self.manifest), self.described["name"].rsplit("/", 1)[1]

    @cached_property
    def weight(self) -> int:
        return objects.weigh(self.manifest)


async def list_page(cluster: Cluster, namespace: str, listing: Listing, request: ListRequest) -> Body:
    """A page of the answers that a request asks for, in order; it may have fewer than asked for, and another behind it.

    Raises InvalidArgumentError, and FailedPreconditionError where there are too many to be put in order.
    """
    query = parse_query(request, listing.filterable, listing.orderable)
    lister = _Lister(cluster, namespace, listing, query)
    entries, mark = await (lister.walk() if query.is_by_name else lister.sort())
    if entries and not lister.joins_first:
        await listing.join([entry.manifest for entry in entries])
    answers = []
    for number, entry in enumerate(entries, 1):
        answers.append(listing.convert(entry.manifest, entry.described))
        if number % _AT_ONE_TURN == 0:
            await asyncio.sleep(0)
    return make_page(query, listing.field, answers, mark)


class _Lister:
    """Finds the entries of a page, and where the next one begins."""

    def __init__(self, cluster: Cluster, namespace: str, listing: Listing, query: Query) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._listing = listing
        self._query = query
        looked_at = {"name", *query.wanted.fields, *(order.field for order in query.orders)}
        self.joins_first = not looked_at.isdisjoint(listing.joined)

    async def walk(self) -> tuple[list[_Entry], Mark | None]:
        """In the order of names, which is Kubernetes' own."""
        query, kinds = self._query, self._listing.kinds
        begin = read_mark(query, len(_BEGIN), len(kinds)) or Mark(_BEGIN, ("",) * len(kinds))
        reading = self._read(begin.pages, PAGE if query.request.filter else query.size)
        page, position = _Page(query.size), begin.key  # of what was looked at last
        for _ in range(MOST_PAGES):
            batch = [manifest for manifest in await reading.read() if _name(manifest) >= position[0]]
            async for entry in self._describe(batch):
                if entry.key <= position:
                    continue
                if query.wanted(entry.described):
                    if page.is_full:
                        return page.entries, Mark(position, reading.here)
                    page.add(entry)
                position = entry.key
            if reading.is_over:
                return page.entries, None
            if batch:
                position = max(position, (_name(batch[-1]), ""))
            if page.is_full:
                break
        return page.entries, Mark(position, reading.there)

    async def sort(self) -> tuple[list[_Entry], Mark | None]:
        """In an order of answers: all are looked at, and those of the page kept."""
        query, rank = self._query, cmp_to_key(self._query.compare)
        begin, end = read_mark(query, len(query.orders)), None
        reading = self._read([""] * len(self._listing.kinds), PAGE)
        best: list[tuple[Key, _Entry]] = []
        for _ in range(MOST_ORDERED_PAGES):
            held = {entry.key for _, entry in best}  # Kubernetes may have had to begin anew
            async for entry in self._describe(await reading.read()):
                if entry.key in held:
                    continue
                key = query.find_key(entry.described)
                is_before = begin is not None and query.compare(key, begin.key) <= 0
                is_behind = end is not None and query.compare(key, end) > 0
                if not is_before and not is_behind and query.wanted(entry.described):
                    best.append((key, entry))
            best.sort(key=lambda one: rank(one[0]))
            page = _Page(query.size)
            for _, entry in best:
                if not page.is_full:
                    page.add(entry)
            if len(page.entries) < len(best):
                del best[len(page.entries) :]
                end = best[-1][0]  # what is behind it was left out, and so is all that is
            if reading.is_over:
                return page.entries, Mark(end) if end else None
        raise FailedPreconditionError(
            f"orderBy: there are too many {self._listing.field}: at most {MOST_ORDERED_PAGES * PAGE} can be put in"
            " order, and fewer large ones; leave orderBy out, or filter by a label, as in labels.KEY=VALUE"
        )

    def _read(self, tokens: Sequence[str], limit: int) -> "_Reading":
        kinds = self._listing.kinds
        # Of several kinds, an object of one may say what its namesake of another is.
        labels = self._query.wanted.labels if len(kinds) == 1 else {}
        asks = [Ask(token, min(limit, PAGE), labels=labels) for token in tokens]
        return _Reading([_Source(self._make_reader(kind), ask) for kind, ask in zip(kinds, asks, strict=True)])

    def _make_reader(self, kind: type[Resource]) -> ReadPage:
        return lambda ask: self._cluster.list_page(kind, self._namespace, ask)

    async def _describe(self, batch: Manifests) -> AsyncIterator[_Entry]:
        """What these are, in the order of names."""
        if self.joins_first and batch:
            await self._listing.join(batch)
        for number, entry in enumerate(self._make_entries(batch), 1):
            yield entry
            if number % _AT_ONE_TURN == 0:
                await asyncio.sleep(0)

    def _make_entries(self, batch: Manifests) -> Iterator[_Entry]:
        for _, namesakes in groupby(batch, key=_name):
            entries = [_Entry(one, described) for one in namesakes for described in self._listing.describe(one)]
            yield from sorted(entries, key=lambda entry: entry.key)


class _Page:
    """The entries of a page, as many as it may have and as weigh no more than an answer may."""

    def __init__(self, size: int) -> None:
        self.entries: list[_Entry] = []
        self._size = size
        self._weight = 0

    @property
    def is_full(self) -> bool:
        return len(self.entries) == self._size or self._weight >= MOST_BYTES

    def add(self, entry: _Entry) -> None:
        self.entries.append(entry)
        self._weight += entry.weight


class _Reading:
    """Objects of some kinds, together in the order of their names."""

    def __init__(self, sources: Sequence["_Source"]) -> None:
        self._sources = sources

    async def read(self) -> Manifests:
        """The next ones; those of one name come together. Nothing once it is over."""
        await asyncio.gather(*(source.fill() for source in self._sources))
        horizon = min((source.horizon for source in self._sources if source.horizon), default="")
        batch = [manifest for source in self._sources for manifest in source.take(horizon)]
        return sorted(batch, key=_name)

    @property
    def is_over(self) -> bool:
        return all(source.is_over for source in self._sources)

    @property
    def here(self) -> tuple[str, ...]:
        """Kubernetes' tokens of the pages that hold what was read last."""
        return tuple(source.here for source in self._sources)

    @property
    def there(self) -> tuple[str, ...]:
        """Those of the pages that hold what comes; at its end, the last one's."""
        return tuple(source.there for source in self._sources)


class _Source:
    """One kind, a page of Kubernetes at a time."""

    def __init__(self, read: ReadPage, ask: Ask) -> None:
        self._read = read
        self._ask = ask
        self._next: Ask | None = ask
        self._left: Manifests = []
        self.here = ask.token  # of the page that `_left` is of

    async def fill(self) -> None:
        """Has something left, if there is anything. Raises InvalidArgumentError for a token that is none."""
        while not self._left and self._next:
            self.here = self._next.token
            page = await self._read_page(self._next)
            self._left, self._next = page.manifests, find_next(self._ask, page) if page.more else None

    async def _read_page(self, ask: Ask) -> Page:
        try:
            return await self._read(ask)
        except ExpiredError:
            self.here = ""  # from the beginning: what was passed is known by its name
            self._ask = replace(ask, token="", limit=PAGE)
            return await self._read(self._ask)
        except InvalidArgumentError as error:
            if not ask.token:
                raise
            raise InvalidArgumentError(OF_NO_LIST, "pageToken") from error

    @property
    def horizon(self) -> str:
        """The name up to which all are known; empty where these are all."""
        return _name(self._left[-1]) if self._next else ""

    def take(self, horizon: str) -> Manifests:
        """What is left up to this name, or all where there is none."""
        taken = [manifest for manifest in self._left if not horizon or _name(manifest) <= horizon]
        self._left = self._left[len(taken) :]
        return taken

    @property
    def is_over(self) -> bool:
        return not self._left and not self._next

    @property
    def there(self) -> str:
        """Kubernetes' token of the page that holds what comes; at the end, of the last one."""
        return self._next.token if self._next and not self._left else self.here


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
