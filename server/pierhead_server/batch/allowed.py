"""Which addresses a batch job may read and write: an allow-list of schemes, and of buckets or hosts. Pure.

An address is the job author's, or that of whoever wrote a line of the input. The worker has the installation's
credentials and its place in the network, so what it may ask is the installation's to say.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

# `scheme://`, or `scheme://name`: a bucket, a claim, or a web server's host, of which `*.` stands for any subdomain.
ENTRY = (
    r"(gs|s3|az|pvc|file)://|(gs|s3|az|pvc)://[A-Za-z0-9$][A-Za-z0-9._-]*|https?://(\*|(\*\.)?[A-Za-z0-9.-]+)(:\d+)?"
)
DEFAULT = ("gs://", "s3://", "az://", "pvc://")
WEB = ("http", "https")

_ENTRY = re.compile(ENTRY)
_NAME = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")  # of a bucket, a container or a claim
_HOST = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """What of a URI says where a request goes."""

    scheme: str
    name: str  # of the bucket or the claim; the host and its port of a web server; empty of `file`


def parse_address(uri: str) -> Address:
    """Raises ValueError that says what is wrong."""
    scheme, found, rest = uri.partition("://")
    if not found:
        raise ValueError("not a URI")
    if scheme in WEB:
        return Address(scheme, _parse_host(scheme, uri))
    name = rest.partition("/")[0]
    if scheme == "file":
        if name:
            raise ValueError(f"file:// takes no host: {name!r}")
        return Address(scheme, "")
    if not _NAME.fullmatch(name):
        raise ValueError(f"not the name of a bucket: {name[:100]!r}")
    return Address(scheme, name)


def _parse_host(scheme: str, uri: str) -> str:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user and a password in a URL are not supported")
    host = f"[{host}]" if ":" in host else host
    if not _HOST.fullmatch(host):
        raise ValueError(f"not a host: {host[:100]!r}")
    return f"{host}:{port or _PORTS[scheme]}"


@dataclass(frozen=True)
class Allowed:
    """An allow-list."""

    entries: tuple[str, ...] = DEFAULT

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Raises ValueError that names the entry that is wrong."""
        found = tuple(entry.strip() for entry in entries)
        for entry in found:
            if not _ENTRY.fullmatch(entry):
                raise ValueError(
                    f"{entry!r}: must be gs://, s3://, az://, pvc:// or file://, one of these with a bucket's name,"
                    " or https:// or http:// with a host such as *.example.com"
                )
        return cls(found)

    def explain(self, uri: str) -> str | None:
        """Why an address is refused; None where it is allowed. Raises ValueError for what is none."""
        address = parse_address(uri)
        if any(_matches(entry, address) for entry in self.entries):
            return None
        where = f"{address.scheme}://{address.name}"
        return f"this installation does not allow {where} in batch jobs: it allows {', '.join(self.entries) or 'none'}"


def _matches(entry: str, address: Address) -> bool:
    scheme, _, name = entry.partition("://")
    if scheme != address.scheme:
        return False
    if scheme not in WEB:
        return name in ("", address.name)
    host, _, port = name.lower().partition(":")
    its_host, _, its_port = address.name.rpartition(":")
    if its_port != (port or str(_PORTS[scheme])):
        return False
    return its_host.endswith(host[1:]) if host.startswith("*") else its_host == host
