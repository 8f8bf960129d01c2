"""The filters of Google's lists (AIP-160), as far as Vertex AI documents them. Pure.

`display_name="x" AND labels.team=a`, `displayName=x`, `labels.team:*`, `NOT state="JOB_STATE_FAILED"`, `(a=1 OR b=2)`.
As in AIP-160, OR binds closer than AND.
"""

import re
from collections.abc import Callable, Collection, Mapping

from pydantic.alias_generators import to_camel

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.wire import JOB_STATES, Body, is_time, parse_time

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


def parse_filter(text: str, fields: Collection[str]) -> Predicate:
    """Whether an answer is asked for: a list's answer has these fields in camelCase, and may have labels.

    Raises InvalidArgumentError where the filter cannot be understood, or names another field.
    """
    return _Parser(_split(text), frozenset(fields)).parse() if text.strip() else lambda _answer: True


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

    def parse(self) -> Predicate:
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

    def _every(self) -> Predicate:
        parts = [self._any()]
        while self._next and self._next != ")":
            if self._next == "AND":
                self._at += 1
            parts.append(self._any())
        return lambda answer: all(part(answer) for part in parts)

    def _any(self) -> Predicate:
        parts = [self._one()]
        while self._next == "OR":
            self._at += 1
            parts.append(self._one())
        return lambda answer: any(part(answer) for part in parts)

    def _one(self) -> Predicate:
        word = self._take()
        if word == "NOT":
            wanted = self._one()
            return lambda answer: not wanted(answer)
        if word == "(":
            inner = self._every()
            if self._take() != ")":
                raise InvalidArgumentError("a ( has no )", "filter")
            return inner
        return self._compare(word)

    def _compare(self, field: str) -> Predicate:
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
        return _compare_field(name, operator, value)


def _compare_label(key: str, operator: str, value: str) -> Predicate:
    if operator == ":":
        key, value = (key, value) if key else (value, "*")
        return lambda answer: _matches(answer.get("labels", {}).get(key), value)
    if operator in _ORDERED or not key:
        raise InvalidArgumentError("labels are compared as in labels.KEY=VALUE, labels.KEY:* or labels:KEY", "filter")
    equal = operator == "="
    return lambda answer: (answer.get("labels", {}).get(key) == value) is equal


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
