"""gzip: what is asked for by headers, and both directions with a bound."""

import gzip
import json
import tracemalloc
import zlib

import pytest
from pierhead_server.compression import COMPRESSED_BYTES, accepts_gzip, compress, inflate, parse_content_encoding
from pierhead_server.errors import BodyTooLargeError, InvalidArgumentError, UnsupportedEncodingError
from pierhead_server.messages import Reply

LIMIT = 1_000_000
BODY = b'{"instances": [1, 2, 3]}'


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        ("", ""),
        ("identity", ""),
        ("Identity, ", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, identity", "gzip"),
    ],
)
def test_known_encodings(value, encoding):
    assert parse_content_encoding(value.encode()) == encoding


@pytest.mark.parametrize("value", ["br", "deflate", "zstd", "gzip, gzip", "gzip, br", "é"])
def test_other_encodings_are_refused(value):
    with pytest.raises(UnsupportedEncodingError, match="is not supported: send gzip, or the body as it is"):
        parse_content_encoding(value.encode("latin-1"))


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("br;q=1.0, GZIP;q=0.2", True),
        ("*", True),
        ("x-gzip", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=none", False),
        ("notgzip", False),
    ],
)
def test_accepted_encodings(value, accepted):
    assert accepts_gzip(value.encode()) == accepted


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(BODY),
        gzip.compress(BODY[:5]) + gzip.compress(BODY[5:]),
        gzip.compress(BODY) + b"\0" * 100,
        gzip.compress(b"") + gzip.compress(BODY),
    ],
    ids=["one member", "two members", "padding", "an empty member"],  # the bytes hold the time of day
)
def test_gzip_is_inflated(body):
    assert inflate(body, LIMIT) == BODY


def test_large_body_is_inflated_whole():
    whole = bytes(index * index % 251 for index in range(LIMIT))
    assert inflate(gzip.compress(whole), LIMIT) == whole
    with pytest.raises(BodyTooLargeError, match="the body is over 999999 bytes once it is inflated"):
        inflate(gzip.compress(whole), LIMIT - 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends too early"),
        (BODY, "is not gzip, as Content-Encoding says"),
        (zlib.compress(BODY), "is not gzip"),
        (gzip.compress(BODY)[:-1], "ends too early"),
        (gzip.compress(BODY)[:-4] + b"1234", "is not gzip"),
        (gzip.compress(BODY) + b"more", "is not gzip"),
        (gzip.compress(b"") * 1001, "more than 1000 members"),
    ],
    ids=["nothing", "plain", "zlib", "cut off", "wrong checksum", "more behind it", "many members"],
)
def test_what_is_not_gzip_is_refused(body, message):
    with pytest.raises(InvalidArgumentError, match=message):
        inflate(body, LIMIT)


def test_bomb_costs_its_limit_and_no_more():
    bomb = gzip.compress(b"\0" * (20 * LIMIT), 1)
    for sent in (bomb, bomb * 3, gzip.compress(b"\0" * (LIMIT // 2), 1) * 40):
        tracemalloc.start()
        with pytest.raises(BodyTooLargeError):
            inflate(sent, LIMIT)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 4 * LIMIT


def test_large_answer_is_compressed():
    body = json.dumps({"predictions": [index / 7 for index in range(1000)]}).encode()
    reply = compress(Reply(200, body, instances=3))
    assert gzip.decompress(reply.body) == body
    assert len(reply.body) < len(body) / 1.5
    assert reply.headers == {
        "Content-Type": "application/json",
        "Vary": "Accept-Encoding",
        "Content-Encoding": "gzip",
    }
    assert reply.instances == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"x" * (COMPRESSED_BYTES - 1)),
        Reply(200, b"\0" * 100_000, {"Content-Type": "application/octet-stream"}),
    ],
)
def test_answer_that_gains_nothing_stays(reply):
    assert compress(reply) == reply


def test_answer_that_would_be_longer_stays_but_may_vary():
    noise = zlib.compress(b"".join(hash((index, 1)).to_bytes(8, "little", signed=True) for index in range(1000)), 9)
    reply = compress(Reply(200, noise))
    assert (reply.body, "Content-Encoding" in reply.headers) == (noise, False)
    assert reply.headers["Vary"] == "Accept-Encoding"
