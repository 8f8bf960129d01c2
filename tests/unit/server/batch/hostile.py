"""Lines that nobody would write, and a storage to which they lead."""

import json
import random
from contextlib import contextmanager

from tests.unit.server.bucket import running_bucket

HEADS = [
    "gs://models",
    "s3://models",
    "az://models",
    "pvc://data",
    "file://",
    "https://images.test",
    "http://127.0.0.1:1",
]
PATHS = [
    "/2024//cat.jpg", "/a/../b", "/./x", "/../../etc/passwd", "/", "//", "", "/a\x00b", "/a\x01b", "/a\x7fb", "/a\\b",
    "/%2e%2e/x", "/%00", "/%", "/%zz", "/a?b", "/a#b", "/a b", " /x", "/\u043a\u043e\u0442.jpg", "/\U0001f431", "/a\u2028b",
    "/a\u0085b", "/\u202ea", "/" + "x" * 300, "/" + "x/" * 600, "/" + "\u00fc" * 1100, "@evil.test/x", ":99999/x",
    ":x/x", "[::1/x", "]/x", "\\@evil.test/x", "%2f/x", "?x/y", "#x/y", ".., /x", "/x/", "/x.[", "/there.jpg", "/empty",
]  # fmt: skip
URIS = [
    *(head + path for head in HEADS for path in PATHS),
    *(
        "gs://" + name + "/x"
        for name in ("", ".", "..", "-", "UPPER", "a_b", "a b", "\u00fc", "%2e", "x" * 300, "none", "[")
    ),
    *(
        "gs:/b/x",
        "gs:b/x",
        "gs://",
        "://",
        "ftp://a/b",
        "data:image/png;base64,aGk=",
        "javascript:alert(1)",
        "gs\u2028://b/x",
    ),
    *(
        "http://169.254.169.254/latest/",
        "http://[fd00:ec2::254]/",
        "http://0/",
        "http://2852039166/",
        "http://localhost/",
    ),
]
JSON = [
    b"null", b"true", b"5", b'""', b"{}", b"[]", b"[[]]", b'{"content": null}', b'{"content": 5}', b'{"content": {}}',
    b'{"content": "gs://models/there.jpg", "content": 5}', b'{"b64": 5}', b'{"b64": "%%%"}', b'{"content": {"b64": "\\u0000"}}',
    b"NaN", b"-Infinity", b"[NaN, {\"a\": Infinity}]", b"1e999", b"-1e999", b"1" * 5000, b"[NaN, 1%s]" % (b"0" * 50),
    b'"\\ud800"', b'{"\\udfff": 1}', b'["\\ud83d", NaN]', b'{"content": "\\ud800"}', b'"\\ud83d\\ude00"', b'"\xed\xa0\x80"',
    b"{broken", b"}", b"[1,]", b"\xff\xfe", b'"\xc3"', b"\x00", b"\x00\x00", b'"\x01"', b"'a'", b"\xef\xbb\xbf1", b'{"a":\r1}',
    b"\r1", b"\x0b1\x0c", b"\xe2\x80\xa8", b'{"a": "\xe2\x80\xa8"}', b"1 2", b'{"a": 1}{"b": 2}', b"#", b"// x", b'"refuse"', b'"die"',
    *(b"[" * depth + b"NaN" + b"]" * depth for depth in (100, 900, 3000, 100_000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (100, 240, 500, 1000, 100_000)),
    *(b"[" * depth + b'{"b64": "aGk="}' + b"]" * depth for depth in (100, 240, 500, 1000)),
]  # fmt: skip


def make_lines(count):
    """As many lines of JSON: each kind at least once, the rest by chance."""
    chance = random.Random(16)  # noqa: S311 - the same in every run
    pictures = [json.dumps({"content": uri}, ensure_ascii=False).encode() for uri in URIS]
    lines = [line.replace(b"\n", b"") for line in (*pictures, *JSON)]
    while len(lines) < count:
        line = bytearray(chance.choice(lines[: len(pictures) + len(JSON)])[:200])
        for _ in range(chance.randint(1, 4)):
            line[chance.randrange(len(line))] = chance.choice([*range(10), *range(11, 256)])
        lines.append(bytes(line))
    chance.shuffle(lines)
    return lines


@contextmanager
def running_storage():
    """A bucket `models` of gs:// and s3://, and the environment in which a worker finds it; az:// has no account."""
    with running_bucket({"there.jpg": b"12345", "empty": b""}) as bucket:
        yield (
            bucket,
            {
                "STORAGE_EMULATOR_HOST": bucket.address,
                "AWS_ENDPOINT_URL": bucket.address,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
            },
        )
