"""The REST API's lists on a real API server: its pages, their order and its tokens are as they are taken for.

The jobs are of a Model that there is not, so that nothing is made of them.
"""

import base64
import json
from collections import Counter

import pytest
import yaml
from pierhead_api.cluster import Cluster
from pierhead_api.errors import InvalidArgumentError, PermissionDeniedError
from pierhead_api.kubernetes_api import connect
from pierhead_api.listing import ListRequest
from pierhead_api.names import Place, Projects
from pierhead_api.pages import Ask
from pierhead_api.services import JobService, ModelService, lists
from pierhead_api.services.session import Session
from pierhead_operator.types import BatchPredictionJob

from tests.batch import make_batch
from tests.e2e.conftest import make_model, make_owner
from tests.kube import scratch_namespace

PAGE = 100  # objects that are asked for at once where it is not told
# As Kubernetes orders them, so do texts: a hyphen is before digits, and those are before letters.
NAMES = sorted([*(f"j{number}" for number in range(295)), "a", "a-b", "a0", "ab", "z"])


class Counted:
    """Connections to the API server that count which lists were asked for, by their plurals."""

    def __init__(self, kubernetes):
        self._kubernetes = kubernetes
        self.lists = Counter()

    async def request(self, call, token):
        if "limit" in call.query:
            self.lists[call.path.rsplit("/", 1)[1]] += 1
        return await self._kubernetes.request(call, token)


@pytest.fixture(scope="module")
def owned(cluster):
    """A namespace with many jobs, and its owner's token."""
    with scratch_namespace("lists") as kubectl:
        kubectl.apply(*make_owner())
        jobs = [make_batch(name, ["gs://in/x"], displayName=f"d{place % 7}") for place, name in enumerate(NAMES)]
        for place, job in enumerate(jobs):
            job["metadata"]["labels"] = {"team": f"t{place % 100}"}
        kubectl("create", "--filename", "-", stdin=yaml.safe_dump_all(jobs), timeout=300)
        yield kubectl, kubectl("create", "token", "owner").strip()


@pytest.fixture
async def owners(owned, monkeypatch):
    """What the API is for the owner, at which place, and what it asked for."""
    kubectl, token = owned
    monkeypatch.setattr(lists, "PAGE", PAGE)
    async with connect() as kubernetes:
        counted = Counted(kubernetes)
        session = Session(Cluster(counted, token), Projects({}, ["local"]))
        yield session, Place(kubectl.namespace, "local", kubectl.namespace), counted.lists


def _names(page):
    return [one["name"].rsplit("/", 1)[1] for one in page.get("batchPredictionJobs", [])]


async def _read_pages(session, place, **request):
    service, pages, token = JobService(session), [], ""
    while True:
        page = await service.list(place, ListRequest(**request, page_token=token))
        pages.append(_names(page))
        token = page.get("nextPageToken", "")
        if not token:
            return pages


async def test_page_is_one_request(owners):
    session, place, asked = owners
    page = await JobService(session).list(place, ListRequest())
    assert _names(page) == NAMES[:100]
    assert asked == {"batchpredictionjobs": 1}


async def test_pages_are_the_whole_in_order(owners):
    session, place, _ = owners
    pages = await _read_pages(session, place, page_size=70)
    assert [name for page in pages for name in page] == NAMES
    assert [len(page) for page in pages] == [70, 70, 70, 70, 20]


# A filter -> the names that it asks for, and how many requests that takes.
FILTERS = {
    "displayName=d3": (NAMES[3::7], 3),
    "labels.team=t42": (NAMES[42::100], 1),
    'labels.team="t42" AND displayName!=d0': ([NAMES[142], NAMES[242]], 1),
    "displayName=nobody": ([], 3),
}


@pytest.mark.parametrize(("text", "expected"), FILTERS.items())
async def test_filter(owners, text, expected):
    session, place, asked = owners
    wanted, requests = expected
    page = await JobService(session).list(place, ListRequest(filter=text, page_size=1000))
    assert (_names(page), asked["batchpredictionjobs"]) == (wanted, requests)
    for size in (1, 50):
        pages = await _read_pages(session, place, filter=text, page_size=size)
        assert [name for page in pages for name in page] == wanted


async def test_order(owners):
    session, place, asked = owners
    page = await JobService(session).list(place, ListRequest(order_by="displayName desc", page_size=20))
    assert _names(page) == NAMES[6::7][:20]
    assert asked["batchpredictionjobs"] == 3


async def test_token_is_worth_its_own_namespace_alone(owners):
    """Whoever makes one up gets an error, or what they may see by themselves."""
    session, place, _ = owners
    made_up = ["nonsense", *(_make_token(start) for start in ("../../default/x", "..", "a/../../b"))]
    for token in made_up:
        with pytest.raises(InvalidArgumentError):
            await session.cluster.list_page(BatchPredictionJob, place.namespace, Ask(token))
        page_token = base64.urlsafe_b64encode(json.dumps(["", "", ["a", "a"], [token]]).encode()).decode()
        with pytest.raises(InvalidArgumentError, match=r"^pageToken: "):
            await JobService(session).list(place, ListRequest(page_token=page_token))
    page = await session.cluster.list_page(BatchPredictionJob, place.namespace, Ask(_make_token("z")))
    assert [one["metadata"]["name"] for one in page.manifests] == ["z"]
    with pytest.raises(PermissionDeniedError):
        await session.cluster.list_page(BatchPredictionJob, "default", Ask(_make_token("z")))


def _make_token(start):
    """A token of Kubernetes that nobody was given; of version -1 is what there is now."""
    token = {"v": "meta.k8s.io/v1", "rv": -1, "start": start}
    return base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")


async def test_jobs_of_other_models_are_not_read_for_a_delete(owners, owned):
    session, place, asked = owners
    kubectl, _ = owned
    model = make_model(v1="photos/1")
    kubectl.apply({**model, "metadata": {"name": "other"}})
    await ModelService(session).delete(place, "other")
    assert asked["batchpredictionjobs"] == 1
