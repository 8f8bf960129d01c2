"""gzip of bodies and answers: what headers ask for, and both directions with a bound. Pure.

The listener reads the headers alone. Workers inflate and deflate, so that nobody else waits for it; what is joined of
several workers' answers, a thread of the listener's.
"""

import zlib
from collections.abc import Mapping

import msgspec

from pierhead_server.errors import BodyTooLargeError, InvalidArgumentError, UnsupportedEncodingError
from pierhead_server.messages import Reply

GZIP = "gzip"
# An answer that fits into one packet gains nothing.
COMPRESSED_BYTES = 1400
_LEVEL = 1  # numbers in JSON become half as long; more costs more time than a network takes for the rest
_WBITS = 16 + zlib.MAX_WBITS  # gzip's own header and checksum
# gzip's format may be several files after one another. Programs that write so do it by blocks of 64 kB and more.
_MOST_MEMBERS = 1000
_WINDOW_BYTES = 64 * 1024


def parse_content_encoding(value: bytes) -> str:
    """How a body is compressed: "gzip", or "" where it is not. Raises UnsupportedEncodingError."""
    names = [name.strip().lower() for name in value.decode("latin-1").split(",")]
    given = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    if given in ([], [GZIP]):
        return "".join(given)
    raise UnsupportedEncodingError(
        f"Content-Encoding {value.decode('latin-1')} is not supported: send gzip, or the body as it is"
    )


def accepts_gzip(value: bytes) -> bool:
    """Whether an Accept-Encoding header asks for gzip: by its name, or by `*`, with a weight over 0."""
    weights = dict(map(_parse_weight, value.decode("latin-1").lower().split(",")))
    return weights.get(GZIP, weights.get("x-gzip", weights.get("*", 0.0))) > 0


def _parse_weight(item: str) -> tuple[str, float]:
    name, _, parameters = item.partition(";")
    weight = parameters.strip().removeprefix("q=") if parameters.strip().startswith("q=") else "1"
    try:
        return name.strip(), float(weight)
    except ValueError:
        return name.strip(), 0.0


def inflate(body: bytes, limit: int) -> bytes:
    """What a gzip body holds, never more than `limit` bytes. Raises BodyTooLargeError, InvalidArgumentError."""
    whole, position = bytearray(), 0
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(_WBITS)
        while not member.eof and position < len(body):
            window = body[position : position + _WINDOW_BYTES]
            try:
                whole += member.decompress(window, limit - len(whole) + 1)
            except zlib.error as error:
                raise InvalidArgumentError(f"the body is not gzip, as Content-Encoding says: {error}") from None
            if len(whole) > limit:
                raise BodyTooLargeError(f"the body is over {limit} bytes once it is inflated: send fewer instances")
            position += len(window) - len(member.unused_data)
        if not member.eof:
            raise InvalidArgumentError("the body is gzip that ends too early: send all of it")
        if not body[position : position + 1].strip(b"\0"):  # the end, or padding
            return bytes(whole)
    raise InvalidArgumentError(f"the body is gzip of more than {_MOST_MEMBERS} members: compress it as one")


def compress(reply: Reply) -> Reply:
    """A reply in gzip, if that makes it shorter; a caller who asked for gzip takes it in either form."""
    if not _is_worth_it(reply.headers, len(reply.body)):
        return reply
    deflater = zlib.compressobj(_LEVEL, wbits=_WBITS)
    body = deflater.compress(reply.body) + deflater.flush()
    headers = {**reply.headers, "Vary": "Accept-Encoding"}
    if len(body) >= len(reply.body):
        return msgspec.structs.replace(reply, headers=headers)
    return msgspec.structs.replace(reply, body=body, headers={**headers, "Content-Encoding": GZIP})


def _is_worth_it(headers: Mapping[str, str], size: int) -> bool:
    """Tensors in binary form are noise to gzip, and would only take its time."""
    plain = "Content-Encoding" not in headers and headers.get("Content-Type") == "application/json"
    return plain and size >= COMPRESSED_BYTES
