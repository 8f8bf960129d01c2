"""What kopf watches, handed on. No logic: an event only says that something may have changed."""

from collections.abc import Collection
from typing import Any, Protocol

import kopf

from pierhead_operator.cluster import find_resource
from pierhead_operator.feed import watched_labels
from pierhead_operator.resources import Manifest


class Listener(Protocol):
    """Who is told what the watches see: feed.Feed."""

    def tell(self, kind: str, live: Manifest) -> None: ...
    def tell_deleted(self, kind: str, live: Manifest) -> None: ...


def make_kopf_settings(kinds: Collection[str]) -> kopf.OperatorSettings:
    """kopf as Pierhead needs it: it watches and writes nothing, neither events nor annotations nor finalizers."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # The namespaces are given, and the kinds are known: no need for the right to list CRDs and namespaces.
    settings.scanning.disabled = True
    # A watch that the network has silently dropped is found at the latest when its time is over.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # Longer than liveness waits. An end sooner would only make Kubernetes wait longer and longer before the next start.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, *[8] * 50)
    # Less than a pod is given to end: one that hangs at its end must not hang until Kubernetes kills it.
    settings.process.ultimate_exiting_timeout = 15
    _bound_memory(settings)
    for kind in kinds:
        selector = ",".join(f"{label}={value}" for label, value in watched_labels(kind).items())
        if selector:
            settings.watching.label_selectors[find_resource(kind)] = selector
    return settings


def make_registry(listener: Listener, kinds: Collection[str]) -> kopf.OperatorRegistry:
    """The handlers that tell `listener`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    for kind in sorted(kinds):
        _register(registry, kind, listener)
    return registry


def _register(registry: kopf.OperatorRegistry, kind: str, listener: Listener) -> None:
    @kopf.on.event(*find_resource(kind), registry=registry, id=f"on_{kind}")
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:  # kopf runs what is not async in another thread
        live: Manifest = dict(event["object"])
        if event["type"] == "DELETED":
            listener.tell_deleted(kind, live)
        else:
            listener.tell(kind, live)


def _bound_memory(settings: kopf.OperatorSettings) -> None:
    """Of thousands of objects kopf holds few at a time, and compares none with what it was."""
    settings.watching.chunk_size = 250
    settings.queueing.idle_timeout = 0.1  # an object's task, and the object with it, stays that long after its event
    settings.persistence.diffbase_storage = _NoDiffBase()


class _NoDiffBase(kopf.DiffBaseStorage):
    """Who only watches asks nobody what changed: kopf would copy each object to find out."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("Pierhead has no handlers of changes")
