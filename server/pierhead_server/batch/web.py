"""Files of web servers, as Storage needs them. A redirect is followed only to where a request may go, too."""

import asyncio
import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from pierhead_server.batch.allowed import WEB, Allowed
from pierhead_server.batch.errors import MalformedError, RefusedError

MOST_REDIRECTS = 5
BODY_SECONDS = 300.0  # for all of an answer, however it trickles

_THREADS = 32  # as many as pictures are fetched at a time
_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
_PIECE_BYTES = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_AGAIN = (408, 425, 429)  # and all of 500 and above
_SAFE = "!#$%&'()*+,/:;=?@[]~"  # what of a URL is not encoded (once more)

T = TypeVar("T")


@dataclass(frozen=True)
class Meta:
    """What a server tells of a file."""

    size: int | None  # None: it does not say
    tag: str | None


@dataclass(frozen=True)
class Answer:
    """An answer whose body is not read yet."""

    meta: Meta
    _response: urllib3.BaseHTTPResponse
    _run: Callable[[Callable[[], bytes]], "asyncio.Future[bytes]"]

    async def read(self, most: int) -> bytes:
        """The body. Raises MalformedError where it is longer than `most`, OSError where it breaks off."""
        return await self._run(lambda: _read_body(self._response, most))

    def close(self) -> None:
        """For a body that nobody reads."""
        self._response.close()


class Web:
    """Asks web servers. Raises FileNotFoundError, RefusedError, OSError where another try may help."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        # Of its own: the loop's may be held by what waits for pictures.
        self._threads = ThreadPoolExecutor(_THREADS, "web")
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    async def head(self, uri: str) -> Meta:
        """A file's size and tag."""
        answer = await self._ask("HEAD", uri, {})
        answer.close()
        return answer.meta

    async def get(self, uri: str) -> Answer:
        """All of a file."""
        return await self._ask("GET", uri, {})

    async def get_range(self, uri: str, start: int, end: int) -> tuple[bytes, Meta]:
        """The bytes [start, end), or fewer where the file ends before."""
        answer = await self._ask("GET", uri, {"Range": f"bytes={start}-{end - 1}"})
        return await answer.read(end - start), answer.meta

    async def _ask(self, method: str, uri: str, headers: dict[str, str]) -> Answer:
        return await self._run(lambda: self._follow(method, uri, headers))

    def _run(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _follow(self, method: str, uri: str, headers: dict[str, str]) -> Answer:
        """The answer behind all redirects. Blocks."""
        at = quote(uri.partition("#")[0], safe=_SAFE)
        for redirects in range(MOST_REDIRECTS + 1):
            self._check(at, redirects)
            with _translated():
                response = self._pool(at).request(
                    method,
                    at,
                    headers={"Accept-Encoding": "identity", "User-Agent": "pierhead-batch", **headers},
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=False,
                    timeout=_TIMEOUT,
                )
            where = response.headers.get("Location")
            if response.status in _REDIRECTS and where:
                response.close()
                with _translated():
                    at = quote(urljoin(at, where).partition("#")[0], safe=_SAFE)
                continue
            try:
                return Answer(_read_meta(response, "Range" in headers), response, self._run)
            except (RefusedError, OSError):
                response.close()
                raise
        raise RefusedError(f"it redirects more than {MOST_REDIRECTS} times")

    def _check(self, uri: str, redirects: int) -> None:
        scheme = uri.partition("://")[0]
        try:
            refused = self._allowed.explain(uri) if scheme in WEB else f"{scheme}:// is none of a web server's"
        except ValueError as error:
            raise MalformedError(str(error)) from None
        if refused:
            raise RefusedError(f"it redirects elsewhere: {refused}" if redirects else refused)

    def _pool(self, uri: str) -> urllib3.PoolManager:
        """By the environment's proxies, as other clients take them."""
        parts = urlsplit(uri)
        proxy = getproxies().get(parts.scheme)
        if proxy and proxy_bypass(parts.netloc):
            proxy = None
        if proxy not in self._pools:
            options = {"num_pools": _THREADS, "maxsize": _THREADS, "ssl_context": ssl.create_default_context()}
            self._pools[proxy] = (
                urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)  # type: ignore[arg-type]
            )
        return self._pools[proxy]


@contextmanager
def _translated() -> Iterator[None]:
    """What urllib3 raises, as the errors of this module."""
    try:
        yield
    except (LocationValueError, UnicodeError, http.client.InvalidURL) as error:
        raise MalformedError(f"not a URL: {error}") from None
    except SSLError as error:
        raise RefusedError(f"no secure connection: {error}") from None
    except (HTTPError, http.client.HTTPException) as error:
        raise OSError(str(error)) from None


def _read_meta(response: urllib3.BaseHTTPResponse, ranged: bool) -> Meta:
    """Of an answer that brings what was asked for."""
    status, headers = response.status, response.headers
    if status in _GONE:
        raise FileNotFoundError
    if status in _AGAIN or status >= 500:
        raise OSError(f"the server answers {status}")
    if status not in (200, 206):
        raise RefusedError(f"the server answers {status}")
    tag = headers.get("ETag")
    if not ranged:
        return Meta(_read_number(headers.get("Content-Length")), tag)
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", headers.get("Content-Range", ""))
    if status != 206 or not whole:
        raise RefusedError("the server does not answer ranges, which a file of lines needs")
    return Meta(int(whole[1]), tag)


def _read_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdecimal() else None


def _read_body(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    """All of it. Blocks."""
    end, pieces, size = time.monotonic() + BODY_SECONDS, [], 0
    try:
        with _translated():
            while piece := response.read1(_PIECE_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise MalformedError(f"it is longer than {most} bytes")
                if time.monotonic() > end:
                    raise OSError(f"its answer takes more than {BODY_SECONDS:.0f} s")
        response.release_conn()
    finally:
        response.close()  # of what was not read to its end; a connection that was given back stays
    return b"".join(pieces)
