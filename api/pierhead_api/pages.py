"""Kubernetes' lists, a page at a time, in the order of names. No transport."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from pierhead_operator.resources import Manifest

PAGE = 250  # objects; a page is parsed in one turn of the event loop


@dataclass(frozen=True)
class Ask:
    """Which page of the objects with these fields and labels: the one that the token is of, or the first one."""

    token: str = ""
    limit: int = PAGE
    fields: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """Some objects; Kubernetes' token of the page behind them, empty where there is none; and the limit they came by.

    That is lower than the one that was asked for where objects are large.
    """

    manifests: list[Manifest]
    more: str = ""
    limit: int = PAGE


ReadPage = Callable[[Ask], Awaitable[Page]]


async def follow(read: ReadPage, ask: Ask) -> AsyncIterator[list[Manifest]]:
    """The objects of a page, and then of each behind it."""
    page = await read(ask)
    yield page.manifests
    while page.more:
        page = await read(find_next(ask, page))
        yield page.manifests


def find_next(ask: Ask, page: Page) -> Ask:
    """The page behind one that was asked for so, of at most twice as many objects: large ones come together."""
    return replace(ask, token=page.more, limit=min(ask.limit, 2 * page.limit))
