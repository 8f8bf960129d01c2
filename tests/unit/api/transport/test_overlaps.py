"""Projects that are namespaces, too."""

import pytest
from pierhead_api.errors import FailedPreconditionError
from pierhead_api.names import Projects
from pierhead_api.overlaps import Overlaps

GONE = (404, {"kind": "Status", "message": "not found"})
DENIED = (403, {"kind": "Status", "message": "forbidden"})
THERE = (200, {"kind": "Namespace"})


async def test_namespaces_come_and_go(api_server, kubernetes):
    overlaps = Overlaps(kubernetes, ["shop"])
    known = []
    for answer in (GONE, THERE, DENIED, THERE, GONE, DENIED):
        api_server.answers = [answer]
        await overlaps.look()
        known.append("shop" in overlaps)
    assert known == [False, True, True, True, False, False]
    assert {(method, path) for method, path, *_ in api_server.requests} == {("GET", "/api/v1/namespaces/shop")}


async def test_it_looks_at_each_and_at_none_without_any(api_server, kubernetes):
    await Overlaps(kubernetes, []).run()
    assert api_server.requests == []
    api_server.answers = [THERE]
    overlaps = Overlaps(kubernetes, ["shop", "bank"])
    await overlaps.look()
    assert all(project in overlaps for project in ("shop", "bank"))


def test_project_that_might_be_either_of_two_is_refused():
    projects = Projects({"shop": "team-a"}, ["local"], {"shop"})
    for call in (lambda: projects.find_namespace("shop"), lambda: projects.find_place("shop", "local")):
        with pytest.raises(FailedPreconditionError, match="give it another id"):
            call()
    assert projects.find_mapped("shop") == "team-a"
    assert projects.find_namespace("team-a") == "team-a"
