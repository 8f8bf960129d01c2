"""The filters of Google's lists (AIP-160), as far as Vertex AI documents them. Pure.

`display_name="x" AND labels.team=a`, `displayName=x`, `labels.team:*`, `NOT state="JOB_STATE_FAILED"`, `(a=1 OR b=2)`.
As in AIP-160, OR binds closer than AND.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic.alias_generators import to_camel

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.wire import JOB_STATES, Body, is_label, is_time, parse_time

Predicate = Callable[[Body], bool]

_TOKEN = re.compile(
    r"""\s*(?:(?P<punctuation>[()]|!=|<=|>=|[=<>:])|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[^\s()=<>!:"']+))"""
)
_ORDERED: Mapping[str, Callable[[str, str], bool]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}
_OPERATORS = ("=", "!=", ":", *_ORDERED)
_MAX_TOKENS = 128
_IDS = ("endpoint", "model")  # the last part of the resource name


@dataclass(frozen=True)
class Filter:
    """Whether an answer is asked for, by which of its fields.

    All that are asked for have these `labels`, which Kubernetes can look for; that does not make them asked for.
    """

    matches: Predicate
    fields: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, answer: Body) -> bool:
        return self.matches(answer)


def parse_filter(text: str, fields: Collection[str]) -> Filter:
    """The filter of a list whose answers have these fields in camelCase, and may have labels.

    Raises InvalidArgumentError where it cannot be understood, or names another field.
    """
    return _Parser(_split(text), frozenset(fields)).parse() if text.strip() else Filter(lambda _answer: True)


def _match_every(parts: Sequence[Filter]) -> Filter:
    labels = {key: value for part in parts for key, value in part.labels.items()}
    return Filter(lambda answer: all(part(answer) for part in parts), _find_fields(parts), labels)


def _match_any(parts: Sequence[Filter]) -> Filter:
    if len(parts) == 1:
        return parts[0]
    return Filter(lambda answer: any(part(answer) for part in parts), _find_fields(parts))


def _find_fields(parts: Sequence[Filter]) -> frozenset[str]:
    return frozenset[str]().union(*(part.fields for part in parts))


def _split(text: str) -> list[str]:
    """The filter's words; a quoted one keeps its quotes, so that "AND" is no operator."""
    tokens, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidArgumentError(f"cannot be understood from {text[at:]!r} on", "filter")
        tokens.append(match.group(match.lastgroup or 0))
        at = match.end()
    if len(tokens) > _MAX_TOKENS:
        raise InvalidArgumentError(f"has more than {_MAX_TOKENS} words", "filter")
    return tokens


def _unquote(token: str) -> str:
    if token[:1] in ('"', "'"):
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    return token


class _Parser:
    """Recursive descent over the words of a filter."""

    def __init__(self, tokens: list[str], fields: frozenset[str]) -> None:
        self._tokens = tokens
        self._fields = fields
        self._at = 0

    def parse(self) -> Filter:
        found = self._every()
        if self._next:
            raise InvalidArgumentError(f"{self._next!r} is not expected there", "filter")
        return found

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._next
        if not token:
            raise InvalidArgumentError("ends too early", "filter")
        self._at += 1
        return token

    def _every(self) -> Filter:
        parts = [self._any()]
        while self._next and self._next != ")":
            if self._next == "AND":
                self._at += 1
            parts.append(self._any())
        return _match_every(parts)

    def _any(self) -> Filter:
        parts = [self._one()]
        while self._next == "OR":
            self._at += 1
            parts.append(self._one())
        return _match_any(parts)

    def _one(self) -> Filter:
        word = self._take()
        if word == "NOT":
            wanted = self._one()
            return Filter(lambda answer: not wanted(answer), wanted.fields)
        if word == "(":
            inner = self._every()
            if self._take() != ")":
                raise InvalidArgumentError("a ( has no )", "filter")
            return inner
        return self._compare(word)

    def _compare(self, field: str) -> Filter:
        if field.endswith("."):  # labels."a key"
            field += _unquote(self._take())
        operator = self._take()
        if operator not in _OPERATORS:
            raise InvalidArgumentError(f"{field} must be compared by one of {' '.join(_OPERATORS)}", "filter")
        value = _unquote(self._take())
        root, _, key = field.partition(".")
        if root == "labels":
            return _compare_label(key, operator, value)
        name = to_camel(root)
        if key or name not in self._fields:
            raise InvalidArgumentError(f"{field} is none of {', '.join(sorted(self._fields))}, labels", "filter")
        return Filter(_compare_field(name, operator, value), frozenset((name,)))


def _compare_label(key: str, operator: str, value: str) -> Filter:
    if operator == ":":
        key, value = (key, value) if key else (value, "*")
        return Filter(lambda answer: _matches(answer.get("labels", {}).get(key), value))
    if operator in _ORDERED or not key:
        raise InvalidArgumentError("labels are compared as in labels.KEY=VALUE, labels.KEY:* or labels:KEY", "filter")
    equal = operator == "="
    labels = {key: value} if equal and is_label(key) and is_label(value) else {}
    return Filter(lambda answer: (answer.get("labels", {}).get(key) == value) is equal, labels=labels)


def _compare_field(name: str, operator: str, value: str) -> Predicate:
    if name == "state" and value.isdigit():
        value = JOB_STATES.get(int(value), value)
    if is_time(name) and "*" not in value:
        value, operator = parse_time(value, "filter"), "=" if operator == ":" else operator
    if operator == ":":
        return lambda answer: _matches(_find(answer, name) or None, value)
    if operator in _ORDERED:
        in_order = _ORDERED[operator]
        return lambda answer: bool(found := _find(answer, name)) and in_order(found, value)
    equal = operator == "="
    return lambda answer: (_find(answer, name) == value) is equal


def _matches(found: str | None, pattern: str) -> bool:
    """Whether it is like a pattern in which a * stands for anything.

    Without a regular expression: Python would remember each for good, and callers send as many as they like.
    """
    first, *parts = pattern.split("*")
    if found is None or not parts:
        return found == pattern
    *middle, last = parts
    at, end = len(first), len(found) - len(last)
    if not found.startswith(first) or not found.endswith(last):
        return False
    for part in middle:
        place = found.find(part, at, max(at, end))
        if place < 0:
            return False
        at = place + len(part)
    return at <= end


def _find(answer: Body, name: str) -> str:
    value = answer["name"].rsplit("/", 1)[1] if name in _IDS else answer.get(name)
    if isinstance(value, bool) or name == "done":
        return str(bool(value)).lower()
    if value is None:
        return ""
    return parse_time(str(value), name) if is_time(name) else str(value)
