"""What is watched, and what becomes of what the watches tell: it is kept, and who it concerns is looked after."""

from collections.abc import Callable, Iterator
from typing import Protocol

from pierhead_operator import names
from pierhead_operator.cluster import Key, Listed
from pierhead_operator.facts import DeployedModelFacts, Facts, UnreadableDeployedModel
from pierhead_operator.resources import Manifest, serving_kinds
from pierhead_operator.routing import route_kinds
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.store import Store
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, Model

OWN_KINDS = frozenset({Model.KIND, Endpoint.KIND, DeployedModel.KIND, BatchPredictionJob.KIND})
# A pod that starts is a dozen events of its own, its Deployment's and others': one look at the end of them is enough.
CHILDREN_SECONDS = 0.15


def watched_kinds(settings: OperatorSettings) -> frozenset[str]:
    """What is watched. Of routes only what this provider makes: kinds that are not installed cannot be watched."""
    return OWN_KINDS | serving_kinds(settings) | {"Job", "Pod"} | route_kinds(settings)


def watched_labels(kind: str) -> dict[str, str]:
    """The labels that the API server chooses by: what other people run is never sent here."""
    return {} if kind in OWN_KINDS else names.OURS


class KeyQueue(Protocol):
    """Where keys wait to be worked on: queue.WorkQueue."""

    def add(self, key: Key, *, urgent: bool = True) -> None: ...
    def add_within(self, key: Key, seconds: float) -> None: ...


class Feed:
    """Where watches, lists and the answers to writes tell what they see."""

    def __init__(self, store: Store, queue: KeyQueue, beat: Callable[[], None]) -> None:
        self._store = store
        self._queue = queue
        self._beat = beat  # told of each event

    def tell(self, kind: str, live: Manifest) -> None:
        """An object is there, as it is now."""
        self._beat()
        # Of what Pierhead wrote itself it knew from the answer: who wrote it needs no look at it. Others do.
        change = self._store.put(kind, live)
        if change is None:
            return
        if kind not in OWN_KINDS:
            self._concern_owner(live)
            return
        if change.before is None or change.before.asked != change.after.asked:
            self._queue.add(_key_of(kind, live))
        self._concern_others(kind, live, change.before, change.after)

    def tell_written(self, kind: str, live: Manifest) -> None:
        """An object is there, as this process has just written it: nobody but others has to look at it."""
        change = self._store.put(kind, live)
        if change is None or kind not in OWN_KINDS:
            return
        if change.before is None or change.before.asked != change.after.asked:
            # Somebody wrote the spec in between, and the answer told it first: its event will be no news.
            self._queue.add(_key_of(kind, live))
        self._concern_others(kind, live, change.before, change.after)

    def tell_deleted(self, kind: str, live: Manifest) -> None:
        """An object is gone, as it was at last."""
        self._beat()
        facts = self._store.find_facts(kind, live["metadata"]["namespace"], live["metadata"]["name"])
        self._store.remove(kind, live)
        if kind in OWN_KINDS:
            self._queue.add(_key_of(kind, live))
            self._concern_others(kind, live, facts, None)
        else:
            self._concern_owner(live)

    def tell_listed(self, kind: str, listed: Listed) -> None:
        """An object is there, or is there no more, says a list: it is looked after when there is time.

        What no event has told yet is news for others, too: their turn may be over.
        """
        key = _key_of(kind, listed.live) if kind in OWN_KINDS else find_owner(listed.live)
        if key:
            self._queue.add(key, urgent=False)
        if listed.is_news and kind in OWN_KINDS:
            self._concern_others(kind, listed.live, listed.before, listed.after)

    def _concern_owner(self, live: Manifest) -> None:
        if key := find_owner(live):
            self._queue.add_within(key, CHILDREN_SECONDS)

    def _concern_others(self, kind: str, live: Manifest, before: Facts | None, after: Facts | None) -> None:
        if before and after and before.told == after.told:
            return
        namespace, name = live["metadata"]["namespace"], live["metadata"]["name"]
        seen = dict.fromkeys(
            key for facts in (before, after) if facts for key in find_readers(kind, namespace, name, facts, self._store)
        )
        for key in seen:
            if kind == DeployedModel.KIND:
                # Several of an Endpoint or a Model may change at once: one look is enough.
                self._queue.add_within(key, CHILDREN_SECONDS)
            else:
                self._queue.add(key)


def find_readers(kind: str, namespace: str, name: str, facts: Facts, store: Store) -> Iterator[Key]:
    """Whose reconciles read a resource of one of Pierhead's kinds, beside its own."""
    match kind:
        case Model.KIND:
            for deployed_model in store.names(DeployedModel.KIND, namespace, names.LABEL_MODEL, name):
                yield Key(DeployedModel.KIND, namespace, deployed_model)
            for batch in store.names(BatchPredictionJob.KIND, namespace, names.LABEL_MODEL, name):
                yield Key(BatchPredictionJob.KIND, namespace, batch)
        case Endpoint.KIND:
            for deployed_model in store.names(DeployedModel.KIND, namespace, names.LABEL_ENDPOINT, name):
                yield Key(DeployedModel.KIND, namespace, deployed_model)
                # What is on a private endpoint is not on its Model's own paths.
                its = store.find_facts(DeployedModel.KIND, namespace, deployed_model)
                if isinstance(its, DeployedModelFacts | UnreadableDeployedModel):
                    yield Key(Model.KIND, namespace, its.server.model)
        case DeployedModel.KIND if isinstance(facts, DeployedModelFacts | UnreadableDeployedModel):
            yield Key(Endpoint.KIND, namespace, facts.server.endpoint)
            # A Model's own routes lead to whoever serves its versions.
            yield Key(Model.KIND, namespace, facts.server.model)


def find_owner(live: Manifest) -> Key | None:
    """For whom an object that Pierhead made was made."""
    metadata = live["metadata"]
    labels = metadata.get("labels", {})
    # What belongs to a DeployedModel has the names of its Endpoint and its Model, too.
    for label, kind in (
        (names.LABEL_DEPLOYED_MODEL, DeployedModel.KIND),
        (names.LABEL_BATCH_PREDICTION_JOB, BatchPredictionJob.KIND),
        (names.LABEL_ENDPOINT, Endpoint.KIND),
        (names.LABEL_MODEL, Model.KIND),
    ):
        if label in labels:
            return Key(kind, metadata["namespace"], labels[label])
    return None


def _key_of(kind: str, live: Manifest) -> Key:
    return Key(kind, live["metadata"]["namespace"], live["metadata"]["name"])
