"""Whether an installation works: `python -m pierhead_operator.check`, which `helm test` runs.

An operator asks to lead once it has seen all that it looks after, and the API is ready once it has: that they are tells
of the CRDs and of their rights, too.
"""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

import aiohttp
from kubernetes.aio.client import ApiClient

from pierhead_operator import lease
from pierhead_operator.cluster import Cluster, ClusterError, Key, Rejected, load_configuration
from pierhead_operator.lease import LeaseAccess

DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS = 0.5
_MANAGEMENT = "/v1/projects/pierhead/locations/any/endpoints"  # of the part that manages, which asks for a token


class NotYetError(Exception):
    """What is looked for is not so now; the message says what is instead."""


async def wait(look: Callable[[], Awaitable[str]], deadline: float = DEADLINE_SECONDS) -> str:
    """What `look` tells at last. Raises NotYetError with its last one where it has none within `deadline` seconds."""
    end = asyncio.get_running_loop().time() + deadline
    while True:
        try:
            return await look()
        except NotYetError:
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)


class LeaseWatcher:
    """Sees that a Lease is being renewed: by its versions, since clocks of two machines may differ."""

    def __init__(self, cluster: LeaseAccess, key: Key) -> None:
        self._cluster = cluster
        self._key = key
        self._before: lease.Record | None = None

    async def look(self) -> str:
        """Who leads. Raises NotYetError until one holder has been seen to renew the Lease."""
        title = f"{self._key.namespace}/{self._key.name}"
        try:
            live = await self._cluster.get(lease.KIND, self._key.namespace, self._key.name)
        except (ClusterError, Rejected) as error:
            raise NotYetError(f"lease {title}: {error}") from error
        if live is None:
            raise NotYetError(f"no lease {title}: no operator has seen all that it looks after")
        record, before = lease.parse_record(live), self._before
        self._before = record
        if not record.holder:
            raise NotYetError(f"lease {title} was given up: no operator leads")
        if before is None or before.holder != record.holder or before.version == record.version:
            raise NotYetError(f"lease {title} of {record.holder} is not renewed")
        return f"operator {record.holder.partition('_')[0]} leads"


async def look_at_api(session: aiohttp.ClientSession, url: str) -> str:
    """That both parts of the API answer. Raises NotYetError where one does not."""
    try:
        for path, expected in (("/readyz", 200), (_MANAGEMENT, 401)):
            async with session.get(f"{url}{path}", timeout=aiohttp.ClientTimeout(total=5)) as response:
                if response.status != expected:
                    raise NotYetError(f"API {url}{path} answers {response.status}: {(await response.text())[:200]}")
        return f"API {url} is ready"
    except (aiohttp.ClientError, TimeoutError) as error:
        raise NotYetError(f"API {url} does not answer: {error!r}") from error


async def check(lease_key: Key, api_url: str | None) -> None:
    """Says what works. Raises NotYetError where something does not in time."""
    async with ApiClient(await load_configuration()) as api, aiohttp.ClientSession() as session:
        print(await wait(LeaseWatcher(Cluster(api), lease_key).look))
        if api_url:
            print(await wait(lambda: look_at_api(session, api_url)))


def _parse_lease(text: str) -> Key:
    namespace, _, name = text.partition("/")
    return Key(lease.KIND, namespace, name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="pierhead_operator.check", description=__doc__)
    parser.add_argument("--lease", type=_parse_lease, required=True, help="the operators' Lease, as NAMESPACE/NAME")
    parser.add_argument("--api", help="the URL of the REST API, if there is one")
    arguments = parser.parse_args()
    try:
        asyncio.run(check(arguments.lease, arguments.api))
    except NotYetError as error:
        sys.exit(f"not working after {DEADLINE_SECONDS:g} s: {error}")


if __name__ == "__main__":
    main()
