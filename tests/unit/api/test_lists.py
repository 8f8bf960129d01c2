"""Lists of any length, on a cluster of a page: what is read and converted of it for each page, and that pages are all."""

import asyncio
import base64
import json
from collections import Counter

import pytest
from google.cloud.aiplatform_v1.services.job_service.pagers import ListBatchPredictionJobsAsyncPager
from google.cloud.aiplatform_v1.types import ListBatchPredictionJobsRequest, ListBatchPredictionJobsResponse
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError
from pierhead_api.listing import ListRequest
from pierhead_api.pages import PAGE
from pierhead_api.services import (
    AiPlatformService,
    EndpointService,
    JobService,
    ModelService,
    OperationService,
    jobs,
    lists,
)

from tests.unit.api.conftest import PLACE, make_deployed_model, make_endpoint, make_job, make_model

SOME = 12


@pytest.fixture
def converted(monkeypatch):
    """The names of the jobs that were converted."""
    names = []

    def to_job(manifest, *arguments):
        names.append(manifest["metadata"]["name"])
        return convert(manifest, *arguments)

    convert = jobs.to_job
    monkeypatch.setattr(jobs, "to_job", to_job)
    return names


@pytest.fixture
def short_pages(monkeypatch):
    """Pages of Kubernetes of 2 objects, where nothing else is asked for."""
    monkeypatch.setattr(lists, "PAGE", 2)


def _add_jobs(cluster, count, **more):
    cluster.add(make_model())
    for number in range(count):
        cluster.add({**make_job(f"j{number:05}", displayName=f"d{number % 3}"), **more})


def _names(answer, field="batchPredictionJobs"):
    return [one["name"].rsplit("/", 1)[1] for one in answer.get(field, [])]


async def _read_pages(ask, **request):
    """The answers of a list, page by page, as Google's clients ask for them."""
    pages, token = [], ""
    while True:
        page = await ask(ListRequest(**request, page_token=token))
        pages.append(page)
        token = page.get("nextPageToken", "")
        if not token:
            return pages


def _lister(service):
    return lambda request: service.list(PLACE, request)


async def _read_names(ask, field="batchPredictionJobs", **request):
    return [name for page in await _read_pages(ask, **request) for name in _names(page, field)]


# --- what a page costs -----------------------------------------------------------------------------------------------

# Of the list, and of the one Model that they have.
PAGE_COSTS = {("list", "BatchPredictionJob"): 1, ("get", "Model"): 1}


@pytest.mark.parametrize("count", [100, 10_000])
async def test_page_costs_the_same_of_few_and_of_many(session, cluster, converted, count):
    _add_jobs(cluster, count)
    page = await JobService(session).list(PLACE, ListRequest())
    assert len(page["batchPredictionJobs"]) == 100
    assert ("nextPageToken" in page) is (count > 100)
    assert Counter(call[:2] for call in cluster.calls) == PAGE_COSTS
    assert len(converted) == 100


async def test_later_page_costs_no_more_than_the_first(session, cluster, converted):
    _add_jobs(cluster, 1000)
    service = JobService(session)
    page = await service.list(PLACE, ListRequest())
    for _ in range(4):
        page = await service.list(PLACE, ListRequest(page_token=page["nextPageToken"]))
    cluster.calls.clear()
    converted.clear()
    page = await service.list(PLACE, ListRequest(page_token=page["nextPageToken"]))
    assert _names(page) == [f"j{number:05}" for number in range(500, 600)] == converted
    assert Counter(call[:2] for call in cluster.calls) == PAGE_COSTS


async def test_filter_that_little_matches_is_answered_a_part_at_a_time(session, cluster, converted):
    """As Vertex AI may: what there is, if anything, and a token by which Google's clients go on."""
    _add_jobs(cluster, 2500)
    cluster.touch("BatchPredictionJob", "j02400", spec={"displayName": "rare"})
    ask = _lister(JobService(session))
    first = await ask(ListRequest(filter="displayName=rare", page_size=1))
    assert first.keys() == {"nextPageToken"}
    assert Counter(call[:2] for call in cluster.calls) == {("list", "BatchPredictionJob"): lists.MOST_PAGES}
    assert lists.MOST_PAGES * PAGE == 1000
    pages = await _read_pages(ask, filter="displayName=rare", page_size=1)
    assert [_names(page) for page in pages] == [[], [], ["j02400"]]
    assert converted == ["j02400"]


async def test_googles_client_goes_on_behind_an_empty_page(session, cluster):
    """Its pager, unchanged: the SDK's `list()` is a list of all that it goes through."""
    _add_jobs(cluster, 2500)
    cluster.touch("BatchPredictionJob", "j02400", spec={"displayName": "rare"})
    service, sizes = JobService(session), []

    async def ask(request, **_):
        asked = ListRequest(request.filter, request.page_size, request.page_token)
        page = await service.list(PLACE, asked)
        sizes.append(len(_names(page)))
        return ListBatchPredictionJobsResponse.from_json(json.dumps(page), ignore_unknown_fields=True)

    request = ListBatchPredictionJobsRequest(filter="displayName=rare")
    pager = ListBatchPredictionJobsAsyncPager(ask, request, await ask(request))
    assert [one.name.rsplit("/", 1)[1] async for one in pager] == ["j02400"]
    assert sizes == [0, 0, 1]


async def test_order_reads_all_and_converts_the_page(session, cluster, converted):
    _add_jobs(cluster, 10_000)
    page = await JobService(session).list(PLACE, ListRequest(order_by="displayName desc", page_size=50))
    assert _names(page) == [f"j{number:05}" for number in range(2, 152, 3)] == converted
    assert Counter(call[:2] for call in cluster.calls) == {
        ("list", "BatchPredictionJob"): lists.MOST_ORDERED_PAGES,
        ("get", "Model"): 1,
    }


async def test_too_many_are_not_put_in_order(session, cluster):
    """Of those with a label there may be fewer."""
    _add_jobs(cluster, 10_001)
    cluster.one("BatchPredictionJob", "j05000")["metadata"]["labels"] = {"team": "a"}
    service = JobService(session)
    with pytest.raises(
        FailedPreconditionError, match=r"^orderBy: there are too many batchPredictionJobs: at most 10000 "
    ):
        await service.list(PLACE, ListRequest(order_by="createTime"))
    cluster.calls.clear()
    page = await service.list(PLACE, ListRequest(order_by="createTime", filter="labels.team=a"))
    assert _names(page) == ["j05000"]
    assert Counter(call[:2] for call in cluster.calls) == PAGE_COSTS


# A filter of 251 jobs, of which one has the label -> how many requests it takes, and how many it finds.
LABEL_FILTERS = {
    "labels.team=a": (1, 1),
    'labels.team="a" AND displayName=d0': (1, 1),
    "(labels.team=a AND displayName=d1)": (1, 0),
    "labels.team=a labels.team=b": (1, 0),
    "labels.team=a OR displayName=d1": (2, 85),
    "NOT labels.team=a": (2, 250),
    "labels.team!=a": (2, 250),
    "labels.team:*": (2, 1),
    'labels.team="no label!"': (2, 0),
    'labels.pierhead.dev/team="a"': (2, 0),
    'labels.team=""': (2, 0),
}


@pytest.mark.parametrize(("text", "expected"), LABEL_FILTERS.items())
async def test_labels_are_looked_for_by_kubernetes(session, cluster, text, expected):
    _add_jobs(cluster, PAGE + 1)
    cluster.one("BatchPredictionJob", "j00003")["metadata"]["labels"] = {"team": "a", "pierhead.dev/team": "a"}
    page = await JobService(session).list(PLACE, ListRequest(filter=text, page_size=1000))
    requests = Counter(call[:2] for call in cluster.calls)["list", "BatchPredictionJob"]
    assert (requests, len(_names(page))) == expected


@pytest.mark.parametrize(("count", "requests"), [(1, 1), (4, 4), (5, 2), (60, 2)])
@pytest.mark.parametrize(("service", "field"), [(EndpointService, "endpoints"), (ModelService, "models")])
async def test_deployed_models_are_asked_for_one_by_one_for_a_few(session, cluster, service, field, count, requests):
    for number in range(60):
        cluster.add(make_endpoint(f"e{number:02}"))
        cluster.add(make_model(f"m{number:02}"))
        for part in range(6):
            name = f"{number}-{part}"
            cluster.add(make_deployed_model(name, endpoint=f"e{number:02}", model=f"m{number:02}"))
    page = await service(session).list(PLACE, ListRequest(page_size=count))
    assert [len(one["deployedModels"]) for one in page[field]] == [6] * count
    assert Counter(call[:2] for call in cluster.calls)["list", "DeployedModel"] == requests


async def test_nothing_but_a_list_is_asked_for_of_nothing(session, cluster):
    assert await EndpointService(session).list(PLACE, ListRequest()) == {}
    assert [call[:2] for call in cluster.calls] == [("list", "Endpoint")]


async def test_large_objects_make_pages_short(session, cluster, monkeypatch):
    """What a page holds is bounded in bytes, however large they are; each has at least one."""
    monkeypatch.setattr(lists, "MOST_BYTES", 1_000_000)
    _add_jobs(cluster, SOME)
    for number in range(4, 8):
        cluster.touch("BatchPredictionJob", f"j{number:05}", spec={"modelParameters": {"a": "x" * 600_000}})
    ask = _lister(JobService(session))
    whole = [f"j{number:05}" for number in range(SOME)]
    for request in ({}, {"filter": "state:*"}, {"order_by": "createTime"}, {"order_by": "createTime", "page_size": 5}):
        pages = await _read_pages(ask, **request)
        assert [name for page in pages for name in _names(page)] == whole, request
        assert max(sum(4 <= int(name[1:]) < 8 for name in _names(page)) for page in pages) == 2, request


async def test_many_values_weigh_more_than_their_text(session, cluster, monkeypatch):
    monkeypatch.setattr(lists, "MOST_BYTES", 1_000_000)
    _add_jobs(cluster, 4)
    for number in range(4):
        cluster.touch("BatchPredictionJob", f"j{number:05}", spec={"modelParameters": {"a": [[]] * 20_000}})
    assert [len(_names(page)) for page in await _read_pages(_lister(JobService(session)))] == [1, 1, 1, 1]


@pytest.mark.parametrize("request_", [{"page_size": 1000}, {"filter": "displayName=x"}, {"order_by": "createTime"}])
async def test_others_are_answered_while_much_is_looked_at_or_made(session, cluster, request_):
    _add_jobs(cluster, 1000)
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await JobService(session).list(PLACE, ListRequest(**request_))
    counting.cancel()
    assert turns >= 50


# --- pages are the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 2, 3, 5, SOME, 100])
@pytest.mark.parametrize("text", ["", "displayName=d1", "NOT displayName=d1", 'modelDisplayName="Photos"', "state=x"])
@pytest.mark.parametrize("order_by", ["", "displayName desc"])
@pytest.mark.usefixtures("short_pages")
async def test_pages_are_the_whole(session, cluster, page_size, text, order_by):
    _add_jobs(cluster, SOME)
    kinds = {"": (0, 1, 2), "displayName=d1": (1,), "NOT displayName=d1": (0, 2), "state=x": ()}.get(text, (0, 1, 2))
    wanted = [number for number in range(SOME) if number % 3 in kinds]
    if order_by:
        wanted.sort(key=lambda number: -(number % 3))
    pages = await _read_pages(_lister(JobService(session)), page_size=page_size, filter=text, order_by=order_by)
    assert [name for page in pages for name in _names(page)] == [f"j{number:05}" for number in wanted]
    assert max(len(_names(page)) for page in pages) <= page_size


@pytest.mark.parametrize("text", ["", "displayName:d*"])
@pytest.mark.parametrize("order_by", ["", "createTime"])
@pytest.mark.usefixtures("short_pages")
async def test_what_comes_and_goes_between_pages_moves_nothing(session, cluster, text, order_by):
    _add_jobs(cluster, SOME)
    ask = _lister(JobService(session))
    first = await ask(ListRequest(page_size=5, filter=text, order_by=order_by))
    for number in (0, 4, 5, 9):
        del cluster.objects["BatchPredictionJob", f"j{number:05}"]
    cluster.add(make_job("j00001a", displayName="d"))
    token = first["nextPageToken"]
    rest = await ask(ListRequest(page_token=token, filter=text, order_by=order_by))
    stay = [f"j{number:05}" for number in (6, 7, 8, 10, 11)]
    assert _names(first) == [f"j{number:05}" for number in range(5)]
    # Kubernetes goes on in what the list was when it began; what is put in order is read anew.
    assert _names(rest) == (stay if order_by else sorted([*stay, "j00005", "j00009"]))


@pytest.mark.parametrize("keeps_rest", [True, False])
@pytest.mark.parametrize("text", ["", "NOT displayName=d2"])
@pytest.mark.parametrize("page_size", [1, 2, 3, 5])
@pytest.mark.usefixtures("short_pages")
async def test_token_that_is_too_old_goes_on(session, cluster, keeps_rest, text, page_size):
    """Kubernetes knows what a list was for some minutes; after that, it goes on with what there is."""
    _add_jobs(cluster, SOME)
    ask = _lister(JobService(session))
    page = await ask(ListRequest(page_size=page_size, filter=text))
    names = _names(page)
    del cluster.objects["BatchPredictionJob", "j00010"]
    cluster.add(make_job("j00010a"))
    cluster.expire(keeps_rest=keeps_rest)
    while token := page.get("nextPageToken"):
        page = await ask(ListRequest(page_size=page_size, filter=text, page_token=token))
        names += _names(page)
    kinds = (0, 1) if text else (0, 1, 2)
    stay = {f"j{number:05}" for number in range(SOME) if number % 3 in kinds} - {"j00010"}
    assert names == sorted({*stay, "j00010a"})


async def test_page_far_behind_is_found_from_the_beginning(session, cluster):
    """A part at a time, as far as one call may read."""
    _add_jobs(cluster, 1500)
    ask = _lister(JobService(session))
    page = await ask(ListRequest(page_size=1000))
    page = await ask(ListRequest(page_size=300, page_token=page["nextPageToken"]))
    cluster.expire(keeps_rest=False)
    last = await ask(ListRequest(page_token=page["nextPageToken"]))
    assert last.keys() == {"nextPageToken"}
    assert _names(await ask(ListRequest(page_token=last["nextPageToken"]))) == [f"j{n:05}" for n in range(1300, 1400)]


async def test_order_has_each_once_where_kubernetes_begins_anew(session, cluster, monkeypatch):
    """As after etcd was restored, in the middle of a call."""
    _add_jobs(cluster, 600)
    list_page, asked = cluster.list_page, []

    async def begin_anew_once(kind, namespace, ask):
        page = await list_page(kind, namespace, ask)
        asked.append(ask)
        if len(asked) == 2:
            cluster.expire(keeps_rest=False)
        return page

    monkeypatch.setattr(cluster, "list_page", begin_anew_once)
    page = await _lister(JobService(session))(ListRequest(order_by="displayName", page_size=1000))
    names = _names(page)
    assert len(names) == len(set(names)) == 600
    assert [ask.token for ask in asked].count("") == 2


def _make_token(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


FORGED = {
    "no token": "nonsense",
    "no token of Kubernetes'": _make_token(["", "", ["a", "a"], ["nonsense"]]),
    "no key": _make_token(["", "", ["a"], [""]]),
    "key of something else": _make_token(["", "", ["a", 1], [""]]),
    "too many pages": _make_token(["", "", ["a", "a"], ["", ""]]),
    "no pages": _make_token(["", "", ["a", "a"], []]),
    "pages of something else": _make_token(["", "", ["a", "a"], {"0": ""}]),
    "what no address may have": _make_token(["", "", ["a", "a"], ["\ud800"]]),
    "another list's": _make_token(["", "", ["a"]]),
    "another filter's": _make_token(["state=x", "", ["a", "a"], [""]]),
    "another order's": _make_token(["", "createTime", ["a", "a"], []]),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
async def test_forged_token_is_refused(session, cluster, token):
    _add_jobs(cluster, 2)
    with pytest.raises(InvalidArgumentError, match=r"^pageToken: "):
        await JobService(session).list(PLACE, ListRequest(page_token=token))


# --- several kinds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
@pytest.mark.usefixtures("short_pages")
async def test_models_of_ai_platform_are_models_and_endpoints_without_one(session, cluster, page_size):
    for name in ("a", "c", "e", "g", "i"):
        cluster.add(make_model(name))
    for name in ("a", "b", "c", "d", "f", "g", "h", "1-is-no-name"):
        cluster.add(make_endpoint(name))
    cluster.add(make_deployed_model("11", endpoint="d", model="a"))
    service = AiPlatformService(session)

    def ask(request):
        return service.list_models("shop", request)

    assert await _read_names(ask, "models", page_size=page_size) == ["a", "b", "c", "e", "f", "g", "h", "i"]
    assert await _read_names(ask, "models", page_size=page_size, filter='name:"*/f"') == ["f"]


async def test_label_of_an_endpoint_makes_no_second_model(session, cluster):
    cluster.add(make_model("a"))
    cluster.add({**make_endpoint("a"), "metadata": {"name": "a", "labels": {"team": "x"}}})
    page = await AiPlatformService(session).list_models("shop", ListRequest(filter="labels.team=x"))
    assert page == {}


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
@pytest.mark.parametrize("text", ["", "done=true", "done=false"])
@pytest.mark.usefixtures("short_pages")
async def test_operations_of_a_location(session, cluster, page_size, text):
    endpoints, models, operations = EndpointService(session), ModelService(session), OperationService(session)
    made = set()
    for name in ("a", "b", "c", "d", "e"):
        body = {"displayName": name, "artifactUri": "gs://models/x"}
        made.add((await models.upload(PLACE, {"modelId": name, "model": body}))["name"])
        if name != "c":
            made.add((await endpoints.create(PLACE, {"displayName": name}, name))["name"])
    for endpoint in ("a", "a", "d"):
        body = {"deployedModel": {"model": PLACE.model("a"), "displayName": "x"}}
        made.add((await endpoints.deploy_model(PLACE, endpoint, body))["name"])
    wanted = {name for name in made if not text or ("_DeployModel_" in name) is (text == "done=false")}

    def ask(request):
        return operations.list(PLACE, "", request)

    pages = await _read_pages(ask, page_size=page_size, filter=text)
    names = [one["name"] for page in pages for one in page.get("operations", [])]
    assert Counter(names) == Counter(wanted)
    assert max(len(page.get("operations", [])) for page in pages) <= page_size


# --- what is deleted -------------------------------------------------------------------------------------------------


async def test_jobs_of_other_models_are_not_read_for_a_delete(session, cluster):
    _add_jobs(cluster, PAGE + 1, status={"state": "JOB_STATE_SUCCEEDED"})
    cluster.add(make_model("other"))
    cluster.calls.clear()
    await ModelService(session).delete(PLACE, "other")
    assert Counter(call[:2] for call in cluster.calls)["list", "BatchPredictionJob"] == 1
    cluster.touch("BatchPredictionJob", f"j{PAGE:05}", status={"state": "JOB_STATE_RUNNING"})
    with pytest.raises(FailedPreconditionError, match=f"in use by batch prediction job j{PAGE:05}$"):
        await ModelService(session).delete(PLACE, "photos")
