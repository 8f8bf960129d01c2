"""Binary data in JSON: each {"b64": "..."} becomes bytes, in whatever dress the base64 comes."""

import re
from itertools import chain
from typing import Any

import pybase64

from pierhead_server.errors import InstanceError, InvalidArgumentError, ValueTensorError, describe_kind

_DATA_URL = re.compile(rb"\s*data:([^,]{0,200}),", re.IGNORECASE)
_STANDARD = bytes.maketrans(b"-_", b"+/")  # of the URL-safe alphabet
_STRANGE = re.compile(r"[^A-Za-z0-9+/=]")
_USE = "send the bytes in base64"


def restore_binary(instances: list[object]) -> None:
    """Each {"b64": "..."} becomes bytes, in place. Raises InstanceError."""
    for index, instance in enumerate(instances):
        try:
            instances[index] = _restore(instance)
        except ValueTensorError as error:
            raise InstanceError(index, error.field, error.cause) from None
        except RecursionError:
            raise InvalidArgumentError("the body is nested too deeply") from None


def _restore(value: object) -> object:
    if isinstance(value, dict):
        if len(value) == 1 and "b64" in value:
            return decode_base64(value["b64"], ".b64")
        for name, item in value.items():
            try:
                value[name] = _restore(item)
            except ValueTensorError as error:
                raise error.within(f".{name}") from None
    elif isinstance(value, list) and _holds_object(value):
        _restore_items(value)
    return value


def _restore_items(values: list[object]) -> None:
    """Of a list that holds objects, directly or in its lists, which are not searched once more."""
    for index, item in enumerate(values):
        try:
            if isinstance(item, dict):
                values[index] = _restore(item)
            elif isinstance(item, list):
                _restore_items(item)
        except ValueTensorError as error:
            raise error.within(f"[{index}]") from None


def _holds_object(values: list[Any]) -> bool:
    """Whether there is an object in a list or in its lists; a picture's 150,000 numbers are not visited one by one."""
    level = values
    while True:
        kinds = set(map(type, level))
        if dict in kinds:
            return True
        if list not in kinds:
            return False
        lists = level if len(kinds) == 1 else [item for item in level if type(item) is list]
        level = list(chain.from_iterable(lists))


def decode_base64(value: object, field: str) -> bytes:
    """The bytes of a base64 string; raises ValueTensorError that says what is wrong.

    The alphabet may be the standard one or the URL-safe one, the padding may be missing, line breaks may be anywhere
    and white space at their sides and at both ends, and `data:image/png;base64,` or its like may stand before it.
    """
    if not isinstance(value, str):
        raise ValueTensorError(field, f"must be a base64 string, not {describe_kind(value)}")
    try:
        data: bytes = pybase64.b64decode(value, validate=True)
    except ValueError:
        data = _decode_loosely(value, field)
    if not data:
        raise ValueTensorError(field, "empty: put the bytes here, in base64")
    return data


def _decode_loosely(value: str, field: str) -> bytes:
    """What the strict decoder refuses: bytes are stripped and translated as a whole, since a picture has megabytes."""
    text = _strip_data_url(value.encode("utf-8", "replace"), field)
    padded = b"".join(map(bytes.strip, text.splitlines())).translate(_STANDARD)
    bare = padded.rstrip(b"=")
    missing = -len(bare) % 4
    if missing < 3 and len(padded) - len(bare) <= missing:
        try:
            data: bytes = pybase64.b64decode(bare + b"=" * missing, validate=True)
            return data
        except ValueError:
            pass
    raise ValueTensorError(field, f"not valid base64 ({_find_cause(padded.decode('utf-8'))}): {_USE}")


def _strip_data_url(text: bytes, field: str) -> bytes:
    head = _DATA_URL.match(text)
    if head is None:
        return text
    if not head[1].lower().endswith(b";base64"):
        raise ValueTensorError(field, f"a data: URL that is not in base64: {_USE}, as data:image/jpeg;base64,...")
    return text[head.end() :]


def _find_cause(text: str) -> str:
    """Why a string in the standard alphabet, without its line breaks, is no base64."""
    strange = _STRANGE.search(text)
    if strange and strange[0] == " ":
        return f"a space after {strange.start()} characters, perhaps a + that was sent in a form"
    if strange:
        return f"{strange[0]!a} after {strange.start()} characters"
    if "=" in text.rstrip("="):
        return "padding in its middle"
    if len(text.rstrip("=")) % 4 == 1:
        return "a character is missing, or one too many: it was cut"
    return "too much padding"
