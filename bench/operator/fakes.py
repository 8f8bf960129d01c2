"""What plays the parts of a cluster that the operator is not measured with: pods that answer, and a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from pierhead_operator import names

from bench.operator.fleet import GATEWAY

# All of 127.0.0.0/8 is this machine. Services' names lead here, and port 80 is what their URLs mean.
PODS_ADDRESS = "127.99.0.1"
_PODS_PORT = 80


class FakePods:
    """Answers what the operator asks of the pods, of which kwok only says that they run."""

    def __init__(self) -> None:
        self.probes = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post(names.PROBE_PATH, self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, PODS_ADDRESS, _PODS_PORT).start()
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        self.probes += 1
        return web.Response()


def make_fake_gateway() -> dict[str, Any]:
    """A stage of kwok's that takes every route as it is, each time that it has changed."""
    taken = ".metadata.generation == .status.parents[0].conditions[0].observedGeneration"
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": "fake-gateway"},
        "spec": {
            "resourceRef": {"apiGroup": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute"},
            "selector": {
                "matchExpressions": [
                    {"jq": {"key": f'if {taken} then "taken" else "new" end', "operator": "In", "values": ["new"]}}
                ]
            },
            "next": {
                "patches": [{"subresource": "status", "root": "status", "type": "merge", "template": _make_taken()}]
            },
        },
    }


def _make_taken() -> str:
    """A Go template of the status."""
    conditions = "".join(
        f"""
  - type: {type_}
    status: "True"
    reason: {type_}
    message: ""
    observedGeneration: {{{{ .metadata.generation }}}}
    lastTransitionTime: {{{{ Now | Quote }}}}"""
        for type_ in ("Accepted", "ResolvedRefs")
    )
    return f"""
parents:
- controllerName: pierhead.dev/fake-gateway
  parentRef:
    group: gateway.networking.k8s.io
    kind: Gateway
    namespace: {GATEWAY["namespace"]}
    name: {GATEWAY["name"]}
  conditions:{conditions}
"""
