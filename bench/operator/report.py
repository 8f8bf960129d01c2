"""From figures to tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.operator.measure import RESTART_LIMIT_SECONDS, Figures
from bench.operator.scrape import Requests, count_own
from bench.server.report import Table
from bench.server.stats import percentile

MEMORY_MB = 300
PACE = 0.5  # of what the same control plane does with as many bare Deployments and Services
REQUESTS_EACH = 6
RESTART_SECONDS = 60
DEPLOYMENT_MS = 100


@dataclass(frozen=True)
class Row:
    """One figure, and its goal where it has one."""

    what: str
    measured: str
    goal: str = ""
    met: bool | None = None

    @property
    def texts(self) -> list[str]:
        """Its cells."""
        return [self.what, self.measured, self.goal, "" if self.met is None else "yes" if self.met else "NO"]


def make_tables(figures: Figures) -> list[Table]:
    """All of it, the goals first."""
    return [
        Table("Goals", ("what", "measured", "goal", "met"), [row.texts for row in make_rows(figures)]),
        _tabulate_cores(figures),
        _tabulate_requests(figures),
    ]


def make_rows(figures: Figures) -> list[Row]:
    return [*_make_fleet_rows(figures), *_make_still_rows(figures), *_make_restart_rows(figures), *_make_fresh(figures)]


def _make_fleet_rows(figures: Figures) -> list[Row]:
    wanted = figures.fleet.deployed_models
    rate, alone = wanted / figures.ready_seconds, wanted / figures.alone_seconds
    return [
        Row(f"{wanted} DeployedModels created", f"{figures.created_seconds:.1f} s"),
        Row("all of them Ready, since the first create", f"{figures.ready_seconds:.1f} s"),
        Row("transitions to Ready a second", f"{rate:.1f}"),
        Row("the same Deployments and Services available a second, without an operator", f"{alone:.1f}"),
        Row("of that pace, with Pierhead", f"{rate / alone:.2f}", f">= {PACE}", rate / alone >= PACE),
        *_make_request_rows("all at once", figures.fleet_requests, wanted),
        Row("reconciles that were tried again", f"{figures.fleet_errors:.0f}"),
    ]


def _make_request_rows(when: str, requests: Requests, deployed_models: int) -> list[Row]:
    own, whole = count_own(requests) / deployed_models, sum(requests.values()) / deployed_models
    return [
        Row(
            f"requests a DeployedModel, {when}, of its own kinds",
            f"{own:.2f}",
            f"<= {REQUESTS_EACH}",
            own <= REQUESTS_EACH,
        ),
        Row(f"requests a DeployedModel, {when}, with those for Endpoints, Models and routes", f"{whole:.2f}"),
    ]


def _make_still_rows(figures: Figures) -> list[Row]:
    return [
        _make_count("writes in a quiet minute", figures.quiet_writes),
        Row("reads in a quiet minute", f"{sum(figures.quiet_requests.values()) - figures.quiet_writes:.0f}"),
        _make_memory("resident after the quiet minute", figures.rss_after_fleet),
        _make_memory("most resident until then", figures.peak_of_fleet),
    ]


def _make_restart_rows(figures: Figures) -> list[Row]:
    seconds = figures.restart_seconds
    took = f"more than {RESTART_LIMIT_SECONDS:.0f} s" if seconds is None else f"{seconds:.1f} s"
    return [
        Row(
            "restart, from SIGTERM until all is reconciled",
            f"{took}, of which {figures.restart_end_seconds:.1f} s to end",
            f"<= {RESTART_SECONDS} s",
            seconds is not None and seconds <= RESTART_SECONDS,
        ),
        _make_count("writes of the restarted operator", figures.restart_writes),
        Row("its reads", f"{sum(figures.restart_requests.values()) - figures.restart_writes:.0f}"),
        _make_memory("resident after the restart", figures.rss_after_restart),
        _make_memory("most resident in the restart", figures.peak_of_restart),
    ]


def _make_fresh(figures: Figures) -> list[Row]:
    half, most = (percentile(figures.deployment_seconds, share) * 1000 for share in (0.5, 0.95))
    ready = percentile(figures.fresh_ready_seconds, 0.5) * 1000
    return [
        Row(
            "created until its Deployment is there, p50",
            f"{half:.0f} ms",
            f"<= {DEPLOYMENT_MS} ms",
            half <= DEPLOYMENT_MS,
        ),
        Row("the same, p95", f"{most:.0f} ms"),
        Row("created until it is Ready, p50", f"{ready:.0f} ms"),
        *_make_request_rows("one after the other", figures.fresh_requests, len(figures.deployment_seconds)),
    ]


def _make_count(what: str, count: float) -> Row:
    return Row(what, f"{count:.0f}", "0", count == 0)


def _make_memory(what: str, size: int) -> Row:
    return Row(what, f"{size / 1e6:.0f} MB", f"<= {MEMORY_MB} MB", size <= MEMORY_MB * 1e6)


def _tabulate_cores(figures: Figures) -> Table:
    rows = [
        [name, f"{cores:.2f}", _share(figures.cores, name), f"{figures.quiet_cores[name]:.2f}"]
        for name, cores in figures.cores.items()
    ]
    columns = ("program", "cores until all were Ready", "share of what was taken", "cores in the quiet minute")
    return Table("CPU", columns, rows)


def _share(cores: Mapping[str, float], name: str) -> str:
    return f"{cores[name] / sum(cores.values()):.0%}"


def _tabulate_requests(figures: Figures) -> Table:
    fleet, fresh = figures.fleet.deployed_models, len(figures.deployment_seconds)
    rows = [
        [
            f"{verb} {kind}",
            f"{figures.fleet_requests.get((verb, kind), 0) / fleet:.2f}",
            f"{figures.fresh_requests.get((verb, kind), 0) / fresh:.2f}",
            f"{figures.quiet_requests.get((verb, kind), 0):.0f}",
            f"{figures.restart_requests.get((verb, kind), 0):.0f}",
        ]
        for verb, kind in sorted(
            {*figures.fleet_requests, *figures.fresh_requests, *figures.quiet_requests, *figures.restart_requests}
        )
    ]
    columns = (
        "request",
        "a DeployedModel, all at once",
        "one after the other",
        "in the quiet minute",
        "in the restart",
    )
    return Table("The operator's requests to the Kubernetes API", columns, rows)
