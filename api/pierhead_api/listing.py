"""How lists are asked for and cut into pages. Pure."""

import base64
import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from pydantic.alias_generators import to_camel

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.filters import Filter, parse_filter
from pierhead_api.wire import Body, is_time, parse_time

Key = tuple[str, ...]

OF_NO_LIST = "is none of this list"
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_LONGEST_NUMBER = 20  # digits of a version's


@dataclass(frozen=True)
class ListRequest:
    """What a list's query says."""

    filter: str = ""
    page_size: int = 0
    page_token: str = ""
    order_by: str = ""
    read_mask: str = ""


@dataclass(frozen=True)
class Listed:
    """What there is to list: the answers, the field of the answer that holds them, and what may be asked of them."""

    answers: Sequence[Body]
    field: str
    filterable: Collection[str]
    orderable: Collection[str] = ()
    known_by: str = "name"  # the field in which no two answers are alike


@dataclass(frozen=True)
class _Order:
    field: str
    descending: bool


@dataclass(frozen=True)
class Query:
    """What a list's query asks for. `orders` ends with the name, which makes it total."""

    request: ListRequest
    wanted: Filter
    orders: tuple[_Order, ...]
    size: int  # of a page

    @property
    def is_by_name(self) -> bool:
        """Whether the order is the names' alone."""
        return len(self.orders) == 1

    def find_key(self, answer: Body) -> Key:
        """An answer's place in the order."""
        return tuple(_sort_value(str(answer.get(order.field, "")), order.field) for order in self.orders)

    def compare(self, one: Key, other: Key) -> int:
        """Less than 0 where the first key comes first."""
        for order, left, right in zip(self.orders, one, other, strict=True):
            if left != right:
                return (-1 if left < right else 1) * (-1 if order.descending else 1)
        return 0


@dataclass(frozen=True)
class Mark:
    """Where a page ends: the key of what was last, and Kubernetes' tokens of the pages that go on, of each kind one.

    What comes or goes between two pages moves nothing else: what follows is what is behind the key. The tokens say no
    more than where to look for that.
    """

    key: Key
    pages: tuple[str, ...] = ()


def select_page(listed: Listed, request: ListRequest) -> Body:
    """The answer of a list: those that the filter asks for, in order, and where the next page begins, if there is one.

    Raises InvalidArgumentError.
    """
    query = parse_query(request, listed.filterable, listed.orderable, listed.known_by)
    found = [(query.find_key(answer), answer) for answer in listed.answers if query.wanted(answer)]
    rank = cmp_to_key(query.compare)
    found.sort(key=lambda entry: rank(entry[0]))
    if after := read_mark(query, len(query.orders)):
        found = [entry for entry in found if query.compare(entry[0], after.key) > 0]
    page = found[: query.size]
    mark = Mark(page[-1][0]) if len(found) > query.size else None
    return make_page(query, listed.field, [answer for _, answer in page], mark)


def parse_query(
    request: ListRequest, filterable: Collection[str], orderable: Collection[str], known_by: str = "name"
) -> Query:
    """What a request asks for of a list whose answers have these fields; raises InvalidArgumentError."""
    return Query(
        request,
        parse_filter(request.filter, filterable),
        tuple(_parse_order(request.order_by, orderable, known_by)),
        _check_size(request.page_size),
    )


def make_page(query: Query, field: str, answers: Sequence[Body], mark: Mark | None) -> Body:
    """The answer of a list; `mark` where another page comes."""
    shown = parse_read_mask(query.request.read_mask)
    page: Body = {field: [_show(answer, shown) for answer in answers]} if answers else {}
    if mark:
        page["nextPageToken"] = _make_token(query.request, mark)
    return page


def parse_read_mask(read_mask: str) -> frozenset[str]:
    """The fields of an answer that a mask asks for, in camelCase, each as a whole; none where all are asked for."""
    names = {to_camel(path.strip().partition(".")[0]) for path in read_mask.split(",") if path.strip()}
    return frozenset() if "*" in names else frozenset(names)


def _show(answer: Body, shown: Collection[str]) -> Body:
    return {name: value for name, value in answer.items() if name in shown} if shown else answer


def _check_size(page_size: int) -> int:
    if page_size < 0:
        raise InvalidArgumentError("must not be negative", "pageSize")
    return min(page_size or _DEFAULT_PAGE, _MAX_PAGE)


def _parse_order(order_by: str, orderable: Collection[str], known_by: str) -> list[_Order]:
    """The named orders, and last that of what answers are known by, which makes it total."""
    orders = []
    for part in filter(None, (part.strip() for part in order_by.split(","))):
        field, *direction = part.split()
        name = to_camel(field)
        if name not in orderable or direction not in ([], ["desc"], ["asc"]):
            known = ", ".join(sorted(orderable)) or "nothing"
            raise InvalidArgumentError(
                f"{part!r}: the list can be ordered by {known}, each with asc or desc", "orderBy"
            )
        orders.append(_Order(name, direction == ["desc"]))
    if len({order.field for order in orders}) < len(orders):
        raise InvalidArgumentError("names a field twice", "orderBy")
    return [*orders, _Order(known_by, False)]


def _sort_value(value: str, field: str) -> str:
    if field == "versionId" and value.isdecimal():
        return value.zfill(_LONGEST_NUMBER)
    return parse_time(value, field) if value and is_time(field) else value


def _make_token(request: ListRequest, mark: Mark) -> str:
    value = json.dumps([request.filter, request.order_by, mark.key, mark.pages])
    return base64.urlsafe_b64encode(value.encode()).decode()


def read_mark(query: Query, keys: int, pages: int = 0) -> Mark | None:
    """Where the page before ended, by a key of so many values and as many tokens; None where there was none.

    Raises InvalidArgumentError.
    """
    request = query.request
    if not request.page_token:
        return None
    try:
        asked, order_by, key, tokens = json.loads(base64.urlsafe_b64decode(request.page_token.encode()))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError(OF_NO_LIST, "pageToken") from error
    if (asked, order_by) != (request.filter, request.order_by):
        raise InvalidArgumentError("is of a list with another filter or order", "pageToken")
    if not _are_texts(key, keys) or not _are_texts(tokens, pages) or not all(map(str.isascii, tokens)):
        raise InvalidArgumentError(OF_NO_LIST, "pageToken")
    return Mark(tuple(key), tuple(tokens))


def _are_texts(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(part, str) for part in value)
