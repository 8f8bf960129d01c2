"""The bench's steps, in their order."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp
import yaml
from pierhead_operator import names
from pierhead_operator.types import Endpoint

from bench.api import pod
from bench.operator import api as kubernetes
from bench.operator import fleet
from bench.operator.api import Api
from bench.server import processes
from bench.server.processes import BenchError
from bench.server.workshop import make_environment
from cluster import settings
from cluster.progress import step
from cluster.settings import Paths

ENDPOINTS = 1000
FEW_JOBS, JOBS = 100, 10_000
GETS = 300
LISTS = 30
PREDICTIONS = 2000
_ROUND = 100  # predictions, straight and forwarded in turn: a busy moment of the machine meets both
_WARM = 50
_NAMESPACE = fleet.NAMESPACES[0]
_API_URL = "http://127.0.0.1:8098"
_PLACE = f"/v1/projects/{_NAMESPACE}/locations/local"
_AT = f"{_PLACE}/endpoints"
_PREDICT = f"{_AT}/e0:predict"
# What is asked of the jobs, each for a page of 100.
_JOB_LISTS = {"page": "", "filter": "?filter=state%3DJOB_STATE_FAILED", "order": "?orderBy=createTime"}
_START_SECONDS = 60.0
_USER = "bench-api"
_BODIES = {"1 kB": 1_000, "100 kB": 100_000}

Ask = Callable[[], Awaitable[None]]


@dataclass
class Figures:
    """Seconds of each request."""

    get: list[float] = field(default_factory=list)
    list_all: list[float] = field(default_factory=list)
    list_bytes: int = 0
    few_jobs: dict[str, list[float]] = field(default_factory=dict)  # by what is asked
    jobs: dict[str, list[float]] = field(default_factory=dict)
    direct: dict[str, list[float]] = field(default_factory=dict)  # by the size of the body
    forwarded: dict[str, list[float]] = field(default_factory=dict)


async def measure(paths: Paths) -> Figures:
    """All of it, on a control plane that runs."""
    async with kubernetes.connect(paths) as api:
        with step(f"create {ENDPOINTS} Endpoints with a DeployedModel each"):
            await _create_fleet(api)
            token = await _make_token(api)
        return await _measure(paths, api, token)


async def _measure(paths: Paths, api: Api, token: str) -> Figures:
    with _running(paths, "bench.api.pod"), _running(paths, "bench.api.api_process", _write_config(paths)) as program:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            await _wait_ready(session, program)
            figures = Figures()
            with step("reads"):
                await _read(session, figures)
            with step("predictions, straight and forwarded"):
                for size, count in _BODIES.items():
                    await _predict(session, figures, size, b"x" * count)
            for jobs, first, count in ((figures.few_jobs, 0, FEW_JOBS), (figures.jobs, FEW_JOBS, JOBS)):
                with step(f"lists of {count} jobs"):
                    await api.create_all([fleet.make_job(_NAMESPACE, f"j{number}") for number in range(first, count)])
                    await _list_jobs(session, jobs)
            return figures


async def _create_fleet(api: Api) -> None:
    numbers = range(0, ENDPOINTS * len(fleet.NAMESPACES), len(fleet.NAMESPACES))  # all in the first namespace
    await api.create(fleet.make_model(_NAMESPACE, "model-0"))
    await api.create_all([fleet.make_endpoint(_NAMESPACE, f"e{place}") for place in range(ENDPOINTS)])
    await api.create_all(
        [fleet.make_deployed_model(number, f"e{place}", f"e{place}-0") for place, number in enumerate(numbers)]
    )
    # No operator runs here: this is what it would say.
    path = f"/apis/{names.API_VERSION}/namespaces/{_NAMESPACE}/{Endpoint.PLURAL}/e0/status"
    await api.send("PATCH", path, {"status": {"trafficSplit": {"e0-0": 100}}}, "application/merge-patch+json")


async def _make_token(api: Api) -> str:
    """The token of somebody who may do everything with Pierhead's resources in the namespace."""
    core, rbac = f"/api/v1/namespaces/{_NAMESPACE}", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{_NAMESPACE}"
    name = {"metadata": {"name": _USER}}
    rule = {"apiGroups": [names.GROUP], "resources": ["*"], "verbs": ["*"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _USER}
    subject = {"kind": "ServiceAccount", "name": _USER, "namespace": _NAMESPACE}
    await api.send("POST", f"{core}/serviceaccounts", name)
    await api.send("POST", f"{rbac}/roles", {**name, "rules": [rule]})
    await api.send("POST", f"{rbac}/rolebindings", {**name, "roleRef": role, "subjects": [subject]})
    answer = await api.send("POST", f"{core}/serviceaccounts/{_USER}/token", {"spec": {"expirationSeconds": 3600}})
    return str(answer["status"]["token"])


def _write_config(paths: Paths) -> str:
    host, _, port = _API_URL.removeprefix("http://").partition(":")
    config = paths.config / "api.yaml"
    config.write_text(yaml.safe_dump({"host": host, "port": int(port), "drainSeconds": 0}))
    return str(config)


@contextmanager
def _running(paths: Paths, module: str, *arguments: str) -> Iterator[processes.Program]:
    repository = settings.REPOSITORY
    environment = make_environment(
        {
            "KUBECONFIG": str(paths.kubeconfig),
            "PYTHONPATH": os.pathsep.join(str(repository / folder) for folder in ("", "operator", "api")),
        }
    )
    argv = [sys.executable, "-m", module, *arguments]
    with processes.running(argv, log=paths.log(module), environment=environment) as program:
        yield program


async def _wait_ready(session: aiohttp.ClientSession, program: processes.Program) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        program.check_alive()
        try:
            async with session.get(f"{_API_URL}/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        if time.monotonic() > deadline:
            raise BenchError(f"the API is not ready after {_START_SECONDS:.0f} s; see {program.log}")
        await asyncio.sleep(0.1)


async def _read(session: aiohttp.ClientSession, figures: Figures) -> None:
    places = iter(range(GETS + _WARM))

    async def get() -> None:
        await _ask(session, "GET", f"{_API_URL}{_AT}/e{next(places)}")

    async def list_all() -> None:
        figures.list_bytes = await _ask(session, "GET", f"{_API_URL}{_AT}?pageSize={ENDPOINTS}")

    await _time(get, _WARM)
    figures.get = await _time(get, GETS)
    await _time(list_all, 3)
    figures.list_all = await _time(list_all, LISTS)


async def _list_jobs(session: aiohttp.ClientSession, figures: dict[str, list[float]]) -> None:
    for what, query in _JOB_LISTS.items():

        async def list_some(query: str = query) -> None:
            await _ask(session, "GET", f"{_API_URL}{_PLACE}/batchPredictionJobs{query}")

        await _time(list_some, 3)
        figures[what] = await _time(list_some, LISTS)


async def _predict(session: aiohttp.ClientSession, figures: Figures, size: str, body: bytes) -> None:
    async def direct() -> None:
        await _ask(session, "POST", f"{pod.URL}{_PREDICT}", body)

    async def forwarded() -> None:
        await _ask(session, "POST", f"{_API_URL}{_PREDICT}", body)

    straight, through = figures.direct.setdefault(size, []), figures.forwarded.setdefault(size, [])
    for ask in (direct, forwarded):
        await _time(ask, _WARM)
    for _ in range(PREDICTIONS // _ROUND):
        straight += await _time(direct, _ROUND)
        through += await _time(forwarded, _ROUND)


async def _time(ask: Ask, times: int) -> list[float]:
    """Seconds of each, one after the other."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        await ask()
        taken.append(time.perf_counter() - begun)
    return taken


async def _ask(session: aiohttp.ClientSession, method: str, url: str, body: bytes | None = None) -> int:
    """How many bytes the answer has; raises BenchError where it is none of the wanted."""
    async with session.request(method, url, data=body) as response:
        data = await response.read()
        if response.status != 200:
            raise BenchError(f"{method} {url}: {response.status}: {data[:300].decode(errors='replace')}")
        return len(data)
