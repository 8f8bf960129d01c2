"""Whatever one request is answered with, the operator goes on, and ends up where it would have without."""

from contextlib import suppress
from copy import deepcopy
from itertools import count

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from pierhead_operator.__main__ import _tidy, make_work
from pierhead_operator.batch_reconcile import BatchReconciler
from pierhead_operator.cluster import Cluster, ClusterError, Conflict, Invalid, Key, Rejected
from pierhead_operator.installation import Installations
from pierhead_operator.metrics import Metrics
from pierhead_operator.progress import ProgressPoller
from pierhead_operator.queue import RetryLater
from pierhead_operator.reconcile import Reconciler

from tests.unit.operator.conftest import make_batch, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.test_batch_reconcile import FakeWorkers

KEYS = [
    Key("DeployedModel", "default", "photos-1"),
    Key("Endpoint", "default", "photos"),
    Key("Model", "default", "photos"),
    Key("BatchPredictionJob", "default", "nightly"),
    Key("DeployedModel", "default", "gone"),
]
ERRORS = [
    ClusterError("502: bad gateway"),
    Rejected("exceeded quota"),
    Conflict("it has changed"),
    Invalid("spec.x: wrong"),
    RuntimeError("a bug"),
]
READS = ("get", "fetch", "list_objects", "get_resource", "list_deployed_models")
WRITES = ("apply", "patch", "apply_status", "apply_raw_status", "delete", "create_event")


class FailingCluster(FakeCluster):
    """One call fails, the one of the given number."""

    def __init__(self, objects, number, error):
        super().__init__(*objects)
        self._numbers, self._number, self._error = count(), number, error
        self.failed = False
        self._watched = None

    def watched(self):
        """Made anew after writes only: nobody else changes its objects."""
        self._watched = self._watched or super().watched()
        return self._watched

    def forget(self):
        self._watched = None

    def _fail_once(self):
        if next(self._numbers) == self._number:
            self.failed = True
            raise self._error


def _failing(name):
    async def call(self, *args, **kwargs):
        self._fail_once()
        try:
            return await getattr(FakeCluster, name)(self, *args, **kwargs)
        finally:
            if name in WRITES:
                self.forget()

    return call


for _name in (*READS, *WRITES):
    setattr(FailingCluster, _name, _failing(_name))


def _make_objects():
    """Of each kind one, and what is left of one that is gone."""
    left = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "dm-gone",
            "uid": "uid-left",
            "labels": {"app.kubernetes.io/managed-by": "pierhead", "pierhead.dev/deployed-model": "gone"},
        },
        "spec": {},
    }
    return [make_model(), make_endpoint(), make_deployed_model(available=True), make_batch(), left]


async def _work_through(cluster, settings, keys=KEYS):
    """Three times over all of them, as the queue does; time enough goes by for what waits."""
    clock = Clock()
    reconciler = Reconciler(cluster, FakeProber(), settings, clock)
    poller = ProgressPoller(FakeWorkers(), lambda: clock().timestamp())
    batches = BatchReconciler(cluster, poller, settings, clock)

    async def reconcile(key):
        return await (batches if key.kind == "BatchPredictionJob" else reconciler).reconcile(key)

    work = make_work(reconcile, Metrics())
    for _ in range(3):
        for key in keys:
            try:
                await work(key)
            except RetryLater:
                continue
        clock.now = clock.now.replace(minute=clock.now.minute + 1)


def _comparable(cluster):
    objects = deepcopy(cluster.objects)
    for live in objects.values():
        for condition in live.get("status", {}).get("conditions", []):
            del condition["lastTransitionTime"]
        for moment in ("updateTime", "startTime", "endTime"):
            live.get("status", {}).pop(moment, None)
    return objects


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_any_error_at_any_call_is_survived_and_made_good(settings, error):
    # A batch job whose workers the API server can never take has failed for good.
    keys = [key for key in KEYS if key.kind != "BatchPredictionJob" or not isinstance(error, Invalid)]
    undisturbed = FailingCluster(_make_objects(), -1, error)
    await _work_through(undisturbed, settings, keys)
    for number in count():
        cluster = FailingCluster(_make_objects(), number, error)
        await _work_through(cluster, settings, keys)
        if not cluster.failed:
            break
        assert _comparable(cluster) == _comparable(undisturbed), f"call {number}"
    assert number > 20


@pytest.mark.parametrize("error", ERRORS[:4], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", range(4))
async def test_tidying_up_survives_what_one_object_does(settings, monkeypatch, error, number):
    """A webhook that refuses a deletion ended the operator."""
    monkeypatch.setattr("pierhead_operator.__main__._RETRY_SECONDS", 0)
    other = settings.model_copy(update={"routing": settings.routing.model_copy(update={"provider": "none"})})
    cluster = FailingCluster(_make_objects(), -1, error)
    await Reconciler(cluster, FakeProber(), settings, Clock()).reconcile(KEYS[1])
    assert ("HTTPRoute", "ep-photos") in cluster.objects
    cluster._numbers, cluster._number = count(), number
    await _tidy(Installations(cluster, "pierhead-system/operator"), Reconciler(cluster, FakeProber(), other, Clock()))


async def _drop(request):
    request.transport.close()
    return web.Response()


def _say(code, text="{}"):
    async def answer(_):
        return web.Response(status=code, text=text)

    return answer


ANSWERS = {
    **{f"status {code}": _say(code) for code in (404, 409, 410, 429, 500, 503)},
    "no JSON": _say(200, "<html>a proxy's own page</html>"),
    "half of it": _say(200, '{"metadata": {"name"'),
    "nothing": _say(200, ""),
    "no answer": _drop,
}


LIVE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "default", "uid": "u"}}
REQUESTS = {
    "fetch": lambda cluster: cluster.fetch("Service", "default", "s"),
    "list": lambda cluster: cluster.list_objects("Service", None),
    "create": lambda cluster: cluster.create(LIVE),
    "update": lambda cluster: cluster.update(LIVE),
    "apply": lambda cluster: cluster.apply(LIVE, LIVE),
    "patch": lambda cluster: cluster.patch(LIVE, {"spec": {}}),
    "apply_raw_status": lambda cluster: cluster.apply_raw_status(KEYS[0], "u", {}),
    "delete": lambda cluster: cluster.delete(LIVE),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_any_answer_is_an_error_of_the_two_kinds(monkeypatch, answer, request_):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as there, ApiClient(Configuration(host=str(there.make_url("")).rstrip("/"))) as api:
        # Of anything else pytest says so.
        with suppress(ClusterError, Rejected):
            assert await request_(Cluster(api)) in (None, False, [], {})
