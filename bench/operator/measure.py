"""The bench's steps, in their order."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from pierhead_operator import names
from pierhead_operator.types import KINDS

from bench.operator import api as kubernetes
from bench.operator import fleet as fleets
from bench.operator.api import Api, Key, Watched
from bench.operator.control_plane import PROGRAMS
from bench.operator.fakes import FakePods
from bench.operator.fleet import Fleet, Manifest
from bench.operator.scrape import Requests, Scrape, count_writes, divide_events, subtract
from bench.operator.supervisor import NAME, Operator
from bench.server.processes import BenchError, busy_seconds, cpu_seconds
from cluster import processes
from cluster.progress import say, step
from cluster.settings import Paths

BENCH, OTHERS = "the bench, with FakePods", "others"
QUIET_MINUTE = 60.0
# An operator that takes longer for all than until the next resync never has an empty queue.
RESTART_LIMIT_SECONDS = 600.0
_SETTLED_SECONDS = 5.0
_QUIET_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_TELL_SECONDS = 5.0
# No goal, but an end: what takes longer is broken.
_LIMIT_SECONDS = 1800.0
_FRESH_LIMIT_SECONDS = 60.0


@dataclass
class Figures:
    """All that is measured: seconds, bytes, requests, and cores of CPU time by program."""

    fleet: Fleet
    # Without an operator: from the first of its Deployments' and Services' requests to the last one available.
    alone_seconds: float = 0.0
    created_seconds: float = 0.0  # from the first DeployedModel's request to the last one's answer
    ready_seconds: float = 0.0  # from the same to the last one Ready
    cores: dict[str, float] = field(default_factory=dict)  # meanwhile
    fleet_requests: Requests = field(default_factory=dict)
    fleet_errors: float = 0.0  # reconciles that were tried again
    quiet_writes: float = 0.0
    quiet_requests: Requests = field(default_factory=dict)
    quiet_cores: dict[str, float] = field(default_factory=dict)
    rss_after_fleet: int = 0
    rss_after_restart: int = 0
    peak_of_fleet: int = 0
    peak_of_restart: int = 0
    restart_seconds: float | None = None  # from SIGTERM; None where it took longer than RESTART_LIMIT_SECONDS
    restart_end_seconds: float = 0.0  # of which until the first one had ended
    restart_writes: float = 0.0
    restart_requests: Requests = field(default_factory=dict)
    fresh_requests: Requests = field(default_factory=dict)
    deployment_seconds: list[float] = field(default_factory=list)  # of each fresh DeployedModel
    fresh_ready_seconds: list[float] = field(default_factory=list)


class Cpu:
    """What the programs take of the processors, in cores, since it was made."""

    def __init__(self) -> None:
        pids = processes.recorded()
        self._pids = {name: pids[name].pid for name in (*PROGRAMS, NAME)} | {BENCH: os.getpid()}
        self._begun, self._before = time.monotonic(), self._look()

    def measure(self) -> dict[str, float]:
        wall = time.monotonic() - self._begun
        taken = {name: seconds - self._before[name] for name, seconds in self._look().items()}
        known = sum(seconds for name, seconds in taken.items() if name != OTHERS)
        taken[OTHERS] = max(0.0, taken[OTHERS] - known)
        return {name: seconds / wall for name, seconds in taken.items()}

    def _look(self) -> dict[str, float]:
        return {name: cpu_seconds([pid]) for name, pid in self._pids.items()} | {OTHERS: busy_seconds()}


class Bench:
    """One run; its steps depend on each other."""

    def __init__(self, api: Api, operator: Operator, fleet: Fleet) -> None:
        self.figures = Figures(fleet)
        self._api = api
        self._operator = operator
        self._fleet = fleet

    async def run(self) -> Figures:
        await self._prepare()
        await self._deploy()
        await self._keep_still()
        await self._restart()
        await self._deploy_one_by_one()
        return self.figures

    async def _prepare(self) -> None:
        with step(f"create {fleets.MODELS} Models and {self._fleet.endpoints} Endpoints"):
            await self._api.create_all([*self._fleet.make_models(), *self._fleet.make_endpoints()])
        with step("the operator's first look at them"):
            self._operator.start()
            wanted = {"Model": fleets.MODELS, "Endpoint": self._fleet.endpoints}
            if not await self._is_reconciled(wanted, _LIMIT_SECONDS):
                raise BenchError(f"not reconciled within {_LIMIT_SECONDS:.0f} s: {wanted}")
            await self._wait_until_quiet(_SETTLED_SECONDS)

    async def _deploy(self) -> None:
        """All DeployedModels at once."""
        wanted = self._fleet.deployed_models
        before, told = await self._look(), await self._api.count_events()
        ready = Watched(self._api, kubernetes.DEPLOYED_MODELS, kubernetes.is_ready)
        with step(f"{wanted} DeployedModels"):
            async with ready.running(), self._telling(ready):
                cpu, begun = Cpu(), time.monotonic()
                await self._api.create_all(self._fleet.make_deployed_models())
                self.figures.created_seconds = time.monotonic() - begun
                await ready.wait_until("all are Ready", lambda: len(ready.since) == wanted, _LIMIT_SECONDS)
                self.figures.ready_seconds = max(ready.since.values()) - begun
                self.figures.cores = cpu.measure()
        with step("what comes after"):
            after = await self._wait_until_quiet(_QUIET_SECONDS)
        self.figures.fleet_requests = await self._explain(before, after, told)
        self.figures.fleet_errors = after.errors - before.errors

    async def _keep_still(self) -> None:
        """A minute in which nobody wants anything."""
        with step(f"{QUIET_MINUTE:.0f} s without a change"):
            before, cpu = await self._look(), Cpu()
            await asyncio.sleep(QUIET_MINUTE)
            self.figures.quiet_cores = cpu.measure()
            self.figures.quiet_requests = subtract((await self._look()).requests, before.requests)
            self.figures.quiet_writes = count_writes(self.figures.quiet_requests)
        self.figures.rss_after_fleet, self.figures.peak_of_fleet = self._operator.measure_memory()

    async def _restart(self) -> None:
        """Another operator finds all as it should be."""
        fleet = self._fleet
        wanted = {"Model": fleets.MODELS, "Endpoint": fleet.endpoints, "DeployedModel": fleet.deployed_models}
        with step("restart the operator"):
            begun = time.monotonic()
            await asyncio.to_thread(self._operator.stop)
            self.figures.restart_end_seconds = time.monotonic() - begun
            self._operator.start()
            if await self._is_reconciled(wanted, RESTART_LIMIT_SECONDS):
                self.figures.restart_seconds = time.monotonic() - begun
        # What was begun before the queue was empty is over by then.
        after = await self._wait_until_quiet(_SETTLED_SECONDS)
        self.figures.restart_requests, self.figures.restart_writes = after.requests, after.writes
        self.figures.rss_after_restart, self.figures.peak_of_restart = self._operator.measure_memory()

    async def _deploy_one_by_one(self) -> None:
        """Fresh DeployedModels beside the fleet, each once the one before is Ready."""
        fresh = fleets.make_fresh()
        await self._api.create_all([endpoint for endpoint, _ in fresh])
        before, told = await self._wait_until_quiet(_SETTLED_SECONDS), await self._api.count_events()
        there = Watched(self._api, kubernetes.DEPLOYMENTS, lambda _: True)
        ready = Watched(self._api, kubernetes.DEPLOYED_MODELS, kubernetes.is_ready)
        with step(f"{len(fresh)} DeployedModels, one after the other"):
            async with there.running(), ready.running():
                for _, deployed_model in fresh:
                    await self._deploy_one(deployed_model, there, ready)
        after = await self._wait_until_quiet(_SETTLED_SECONDS)
        self.figures.fresh_requests = await self._explain(before, after, told)

    async def _deploy_one(self, manifest: Manifest, there: Watched, ready: Watched) -> None:
        namespace, name = kubernetes.key_of(manifest)
        deployment: Key = (namespace, names.server(name))
        await self._api.create(manifest)
        begun = time.monotonic()
        await there.wait_until(f"Deployment of {name}", lambda: deployment in there.since, _FRESH_LIMIT_SECONDS)
        # A watch may tell of it before the answer to the create has been read.
        self.figures.deployment_seconds.append(max(0.0, there.since[deployment] - begun))
        await ready.wait_until(f"{name} is Ready", lambda: (namespace, name) in ready.since, _FRESH_LIMIT_SECONDS)
        self.figures.fresh_ready_seconds.append(max(0.0, ready.since[namespace, name] - begun))

    async def _explain(self, before: Scrape, after: Scrape, told: Counter[str]) -> Requests:
        """The requests between two looks; `told` counts the Events that there were at the first."""
        events = await self._api.count_events() - told
        ours = {kind.KIND: events[kind.KIND] for kind in KINDS}
        return divide_events(subtract(after.requests, before.requests), ours)

    async def _look(self) -> Scrape:
        found = await self._operator.scrape()
        if found is None:
            raise BenchError(f"the operator does not answer; see {self._operator.log}")
        return found

    async def _is_reconciled(self, wanted: Mapping[str, int], seconds: float) -> bool:
        """Waits until it has had a look at so many of each kind, and at all else that it was told; whether it did."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = await self._operator.scrape()
            if found and found.is_done_with(wanted):
                return True
            await asyncio.sleep(_LOOK_SECONDS)
        return False

    async def _wait_until_quiet(self, seconds: float) -> Scrape:
        """Until nothing has been written for `seconds`."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        last, since = await self._look(), time.monotonic()
        while time.monotonic() - since < seconds:
            if time.monotonic() > deadline:
                raise BenchError(f"the operator still writes after {_LIMIT_SECONDS:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS)
            found = await self._look()
            if found.writes != last.writes:
                since = time.monotonic()
            last = found
        return last

    @asynccontextmanager
    async def _telling(self, ready: Watched) -> AsyncIterator[None]:
        """Says now and then how far it is."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(_TELL_SECONDS)
                resident, _ = self._operator.measure_memory()
                say(f"  {len(ready.since)} Ready; the operator holds {resident / 1e6:.0f} MB")

        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(tell())
            yield
            telling.cancel()


async def measure_alone(paths: Paths, fleet: Fleet) -> float:
    """Seconds that a control plane needs for the fleet's Deployments and Services by itself: the least there is."""
    async with kubernetes.connect(paths) as api:
        available = Watched(api, kubernetes.DEPLOYMENTS, kubernetes.is_available)
        with step(f"{fleet.deployed_models} Deployments and Services, without an operator"):
            async with available.running():
                begun = time.monotonic()
                await api.create_all(fleet.make_children())
                await available.wait_until(
                    "all are available", lambda: len(available.since) == fleet.deployed_models, _LIMIT_SECONDS
                )
                return max(available.since.values()) - begun


async def measure(paths: Paths, fleet: Fleet) -> Figures:
    """Runs all steps on a control plane that is up."""
    async with kubernetes.connect(paths) as api, aiohttp.ClientSession() as session, FakePods().serve():
        operator = Operator(paths, session)
        try:
            return await Bench(api, operator, fleet).run()
        finally:
            operator.stop()
