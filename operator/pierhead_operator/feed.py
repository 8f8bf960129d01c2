"""What is watched, and what becomes of what the watches tell: it is kept, and who it concerns is looked after."""

from collections.abc import Callable, Iterator

from pierhead_operator import names
from pierhead_operator.cluster import Key
from pierhead_operator.resources import Manifest, serving_kinds
from pierhead_operator.routing import route_kinds
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.store import Store
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Endpoint, Model

OWN_KINDS = frozenset({Model.KIND, Endpoint.KIND, DeployedModel.KIND, BatchPredictionJob.KIND})


def watched_kinds(settings: OperatorSettings) -> frozenset[str]:
    """What is watched. Of routes only what this provider makes: kinds that are not installed cannot be watched."""
    return OWN_KINDS | serving_kinds(settings) | {"Job", "Pod"} | route_kinds(settings)


def watched_labels(kind: str) -> dict[str, str]:
    """The labels that the API server chooses by: what other people run is never sent here."""
    return {} if kind in OWN_KINDS else names.OURS


class Feed:
    """Where watches and lists tell what they see."""

    def __init__(self, store: Store, enqueue: Callable[[Key], None], beat: Callable[[], None]) -> None:
        self._store = store
        self._enqueue = enqueue
        self._beat = beat  # told of each event

    def tell(self, kind: str, live: Manifest) -> None:
        """An object is there, as it is now."""
        self._beat()
        # Of what Pierhead wrote itself it knew from the answer: who wrote it needs no look at it. Others do.
        if self._store.put(kind, live) or kind in OWN_KINDS:
            self.enqueue_concerned(kind, live)

    def tell_deleted(self, kind: str, live: Manifest) -> None:
        """An object is gone, as it was at last."""
        self._beat()
        self._store.remove(kind, live)
        self.enqueue_concerned(kind, live)

    def enqueue_concerned(self, kind: str, live: Manifest) -> None:
        """Has all looked after that an object concerns."""
        for key in find_concerned(kind, live, self._store):
            self._enqueue(key)


def find_concerned(kind: str, live: Manifest, store: Store) -> Iterator[Key]:
    """Who has to be looked after when an object changes."""
    metadata = live["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    match kind:
        case Model.KIND:
            yield Key(kind, namespace, name)
            for deployed_model in store.names(DeployedModel.KIND, namespace, names.LABEL_MODEL, name):
                yield Key(DeployedModel.KIND, namespace, deployed_model)
            for batch in store.names(BatchPredictionJob.KIND, namespace, names.LABEL_MODEL, name):
                yield Key(BatchPredictionJob.KIND, namespace, batch)
        case BatchPredictionJob.KIND:
            yield Key(kind, namespace, name)
        case Endpoint.KIND:
            yield Key(kind, namespace, name)
            for deployed_model in store.names(DeployedModel.KIND, namespace, names.LABEL_ENDPOINT, name):
                yield Key(DeployedModel.KIND, namespace, deployed_model)
                # What is on a private endpoint is not on its Model's own paths.
                model = store.labels(DeployedModel.KIND, namespace, deployed_model)[names.LABEL_MODEL]
                yield Key(Model.KIND, namespace, model)
        case DeployedModel.KIND:
            yield Key(kind, namespace, name)
            yield Key(Endpoint.KIND, namespace, live["spec"]["endpoint"])
            # A Model's own routes lead to whoever serves its versions.
            yield Key(Model.KIND, namespace, live["spec"]["model"])
        case _:
            if key := _find_owner(namespace, metadata.get("labels", {})):
                yield key


def _find_owner(namespace: str, labels: dict[str, str]) -> Key | None:
    """For whom an object was made."""
    # What belongs to a DeployedModel has the names of its Endpoint and its Model, too.
    for label, kind in (
        (names.LABEL_DEPLOYED_MODEL, DeployedModel.KIND),
        (names.LABEL_BATCH_PREDICTION_JOB, BatchPredictionJob.KIND),
        (names.LABEL_ENDPOINT, Endpoint.KIND),
        (names.LABEL_MODEL, Model.KIND),
    ):
        if label in labels:
            return Key(kind, namespace, labels[label])
    return None
