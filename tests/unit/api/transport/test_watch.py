"""Lists and watches against a real HTTP server."""

import pytest
from pierhead_api.route_table import RouteTable
from pierhead_api.watch import Watch, make_watches
from pierhead_operator.types import Endpoint

from tests.unit.api.transport.conftest import make_endpoint

PATH = "/apis/pierhead.dev/v1/endpoints"


class Recorder(RouteTable):
    """A table that tells what it was told, as kind, what happened, and names."""

    def __init__(self):
        super().__init__(offers_private=True)
        self.told = []

    def put(self, kind, live):
        self.told.append(("put", live["metadata"]["name"]))

    def remove(self, kind, key):
        self.told.append(("remove", key[1]))

    def remove_missing(self, kind, namespace, there):
        self.told.append(("only", *sorted(name for _, name in there)))


class _EnoughError(Exception):
    """The test has seen what it wants to."""


def make_watch(kubernetes, table, namespace=None, times=1):
    """A watch that ends when it wants to wait for the nth time; `waits` are the seconds."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == times:
            raise _EnoughError

    watch = Watch(kubernetes, table, Endpoint, namespace, sleep)
    watch.waits = waits
    return watch


def page(version, *names, more=""):
    items = [make_endpoint(name=name) for name in names]
    return 200, {"metadata": {"resourceVersion": version, "continue": more}, "items": items}


def event(type_, name, version="9"):
    live = make_endpoint(name=name)
    live["metadata"]["resourceVersion"] = version
    return {"type": type_, "object": live}


BOOKMARK = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "12"}}}
GONE = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
AWAY = (500, {"kind": "Status", "message": "etcd"})


async def run(watch):
    with pytest.raises(_EnoughError):
        await watch.run()


async def test_all_is_listed_and_then_what_happens_is_told(api_server, kubernetes):
    events = [event("ADDED", "c"), event("MODIFIED", "a"), event("DELETED", "b"), BOOKMARK]
    api_server.answers = [page("3", "a", more="m"), page("3", "b"), (200, events), (200, [])]
    table = Recorder()
    watch = make_watch(kubernetes, table)
    assert not watch.is_complete
    await run(watch)
    assert watch.is_complete
    listed = [("put", "a"), ("put", "b"), ("only", "a", "b")]
    assert table.told == [*listed, ("put", "c"), ("put", "a"), ("remove", "b")]
    queries = [query for _, path, query, _, _ in api_server.requests if path == PATH]
    assert [query.get("resourceVersion") for query in queries] == [None, None, "3", "12"]
    assert queries[1]["continue"] == "m"
    assert queries[2]["allowWatchBookmarks"] == "true"


async def test_page_is_told_before_the_next_is_asked_for(api_server, kubernetes):
    """Pages are not held until the last one comes, and one that fails takes nothing away."""
    api_server.answers = [page("3", "a", more="m"), AWAY]
    table = Recorder()
    watch = make_watch(kubernetes, table)
    await run(watch)
    assert table.told == [("put", "a")]
    assert not watch.is_complete


async def test_large_objects_are_listed_a_few_at_a_time(api_server, kubernetes):
    large = page("3", "a", more="m")
    large[1]["items"][0]["metadata"]["annotations"] = {"a": "x" * 5_000_000}
    api_server.answers = [large, page("3", "a", more="m"), page("3", "b"), AWAY]
    table = Recorder()
    await run(make_watch(kubernetes, table))
    assert table.told == [("put", "a"), ("put", "b"), ("only", "a", "b")]
    assert [query["limit"] for _, _, query, _, _ in api_server.requests[:3]] == ["250", "62", "124"]


@pytest.mark.parametrize("end", [(200, [GONE]), (410, {"kind": "Status", "message": "expired"}), AWAY])
async def test_watch_that_cannot_go_on_begins_with_a_list(api_server, kubernetes, end):
    api_server.answers = [page("3", "a"), end, page("20", "b"), (200, [event("ADDED", "c")]), AWAY]
    table = Recorder()
    await run(make_watch(kubernetes, table, times=2))
    assert table.told == [("put", "a"), ("only", "a"), ("put", "b"), ("only", "b"), ("put", "c")]


async def test_failures_in_a_row_wait_longer_each(api_server, kubernetes):
    api_server.answers = [AWAY]
    watch = make_watch(kubernetes, Recorder(), times=8)
    await run(watch)
    most = [2, 4, 8, 16, 30, 30, 30, 30]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(watch.waits, most, strict=True))
    assert not watch.is_complete


async def test_own_credentials_and_namespace_are_used(api_server, kubernetes):
    api_server.answers = [AWAY]
    await run(make_watch(kubernetes, Recorder(), "team-a"))
    [(_, path, _, headers, _)] = api_server.requests
    assert path == "/apis/pierhead.dev/v1/namespaces/team-a/endpoints"
    assert headers["Authorization"] == "Bearer own-token"


async def test_watches_of_all_kinds_in_each_namespace(kubernetes):
    assert len(make_watches(kubernetes, Recorder(), [])) == 3
    assert len(make_watches(kubernetes, Recorder(), ["team-a", "team-b"])) == 6
