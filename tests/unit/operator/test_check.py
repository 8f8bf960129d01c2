"""What `helm test` asks, against a Lease whose record is given and an API that is a real server."""

from collections import deque

import aiohttp
import pytest
from aiohttp import web
from pierhead_operator.check import LeaseWatcher, NotYetError, look_at_api, wait
from pierhead_operator.cluster import ClusterError, Key

KEY = Key("Lease", "pierhead-system", "pierhead-operator")


def make_lease(version, holder="pierhead-operator-7f9_1a2b"):
    return {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 10}}


class Cluster:
    """Answers one look after the other."""

    def __init__(self, *answers):
        self._answers = deque(answers)

    async def get(self, kind, namespace, name):
        answer = self._answers.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_operator_that_renews_its_lease_leads():
    watcher = LeaseWatcher(Cluster(make_lease("1"), make_lease("1"), make_lease("2")), KEY)
    for _ in range(2):
        with pytest.raises(NotYetError, match="is not renewed"):
            await watcher.look()
    assert await watcher.look() == "operator pierhead-operator-7f9 leads"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([None], "no lease pierhead-system/pierhead-operator"),
        ([make_lease("1", holder="")], "given up"),
        ([make_lease("1", "one_1"), make_lease("2", "two_2")], "of two_2 is not renewed"),
        ([ClusterError("no answer")], "no answer"),
    ],
)
async def test_what_is_wrong_is_told(answers, message):
    watcher = LeaseWatcher(Cluster(*answers), KEY)
    for _ in answers[:-1]:
        with pytest.raises(NotYetError):
            await watcher.look()
    with pytest.raises(NotYetError, match=message):
        await watcher.look()


async def test_wait_gives_the_last_cause_when_the_time_is_over():
    async def look():
        raise NotYetError("nobody leads")

    with pytest.raises(NotYetError, match="nobody leads"):
        await wait(look, deadline=0)


@pytest.fixture
async def api():
    """A server that is ready at the second look, and whose other part is there at the third; its URL."""
    app, statuses = web.Application(), {"readyz": deque([503, 200, 200]), "endpoints": deque([503, 401])}

    async def answer(request):
        status = statuses[request.path.rpartition("/")[2]].popleft()
        return web.Response(status=status, text="has not seen every endpoint")

    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_api_is_ready_when_it_says_so(api):
    async with aiohttp.ClientSession() as session:
        for path in ("/readyz", "/v1/.*"):
            with pytest.raises(NotYetError, match=f"{path} answers 503: has not seen every endpoint"):
                await look_at_api(session, api)
        assert await look_at_api(session, api) == f"API {api} is ready"


async def test_api_that_nobody_serves_is_told():
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NotYetError, match="does not answer"):
            await look_at_api(session, "http://127.0.0.1:1")
