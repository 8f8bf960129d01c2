"""How lists are asked for and cut into pages. Pure."""

import base64
import binascii
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

from pydantic.alias_generators import to_camel

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.filters import parse_filter
from pierhead_api.wire import Body, is_time, parse_time

Comparison = Callable[[Sequence[str], Sequence[str]], int]

_DEFAULT_PAGE = 100
_MAX_PAGE = 1000


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


@dataclass(frozen=True)
class _Order:
    field: str
    descending: bool


def select_page(listed: Listed, request: ListRequest) -> Body:
    """The answer of a list: those that the filter asks for, in order, and where the next page begins, if there is one.

    The token holds the last answer's values, so that what comes or goes between two pages moves nothing else. Raises
    InvalidArgumentError.
    """
    wanted = parse_filter(request.filter, listed.filterable)
    orders = _parse_order(request.order_by, listed.orderable)
    found = [(_sort_key(answer, orders), answer) for answer in listed.answers if wanted(answer)]
    compare = _make_comparison(orders)
    rank = cmp_to_key(compare)
    found.sort(key=lambda entry: rank(entry[0]))
    if request.page_token:
        after = _read_token(request, len(orders))
        found = [entry for entry in found if compare(entry[0], after) > 0]
    size = _check_size(request.page_size)
    page = found[:size]
    shown = parse_read_mask(request.read_mask)
    answer: Body = {listed.field: [_show(entry[1], shown) for entry in page]} if page else {}
    if len(found) > size:
        answer["nextPageToken"] = _make_token(request, page[-1][0])
    return answer


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


def _parse_order(order_by: str, orderable: Collection[str]) -> list[_Order]:
    """The named orders, and last the name, which makes it total."""
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
    return [*orders, _Order("name", False)]


def _sort_key(answer: Body, orders: Sequence[_Order]) -> list[str]:
    return [_sort_value(str(answer.get(order.field, "")), order.field) for order in orders]


def _sort_value(value: str, field: str) -> str:
    return parse_time(value, field) if value and is_time(field) else value


def _make_comparison(orders: Sequence[_Order]) -> Comparison:
    def compare(one: Sequence[str], other: Sequence[str]) -> int:
        for order, left, right in zip(orders, one, other, strict=True):
            if left != right:
                return (-1 if left < right else 1) * (-1 if order.descending else 1)
        return 0

    return compare


def _make_token(request: ListRequest, key: Sequence[str]) -> str:
    value = json.dumps([request.filter, request.order_by, list(key)])
    return base64.urlsafe_b64encode(value.encode()).decode()


def _read_token(request: ListRequest, length: int) -> list[str]:
    try:
        asked, order_by, key = json.loads(base64.urlsafe_b64decode(request.page_token.encode()))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError("is none of this list", "pageToken") from error
    fits = isinstance(key, list) and len(key) == length and all(isinstance(part, str) for part in key)
    if not fits or (asked, order_by) != (request.filter, request.order_by):
        raise InvalidArgumentError("is of a list with another filter or order", "pageToken")
    return list(key)
