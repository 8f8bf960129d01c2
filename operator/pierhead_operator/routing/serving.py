"""Who serves a Model's own paths, and to whom: one answer for the operator's routes and the REST API. Pure.

AI Platform's paths name a Model and no Endpoint, so that nothing in a request says whom it is for. What cannot be shown
to be for the one who asks is not routed.
"""

import math
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass

from pierhead_operator import names
from pierhead_operator.routing.split import Split
from pierhead_operator.types import DeployedModel, Endpoint, Model


@dataclass(frozen=True, slots=True)
class Server:
    """What of a DeployedModel decides which paths lead to it; of thousands, this is what the API keeps."""

    model: str
    version: str
    endpoint: str
    answering: int  # replicas


def describe_server(dm: DeployedModel) -> Server:
    """A DeployedModel as a server. One that is being deleted answers nobody."""
    answering = 0 if dm.metadata.deletion_timestamp else dm.status.available_replica_count
    return Server(dm.spec.model, dm.status.model_version, dm.spec.endpoint, answering)


def is_offered(endpoint: Endpoint, *, offers_private: bool) -> bool:
    """Whether an Endpoint, and what is on it, is for those who ask: `offers_private` where Private ones are, too.

    One that is being deleted is for nobody. One that is missing, or that cannot be read, is not to be asked about: it
    is for nobody either.
    """
    return not endpoint.metadata.deletion_timestamp and (offers_private or endpoint.spec.access == "Standard")


def name_versions(model: Model) -> dict[str, str]:
    """A Model's versions by all that AI Platform's paths may call them: their names, in its words too, and aliases.

    What AI Platform calls a version is not another one's alias, which may have capital letters as well.
    """
    versions = model.spec.versions
    aliases = {alias: version.name for version in versions for alias in version.aliases}
    own = {name: version.name for version in versions for name in (version.name, names.ai_platform(version.name))}
    return {**aliases, **own}


def find_serving(
    model: str, versions: Collection[str], servers: Mapping[str, Server], offered: Container[str]
) -> dict[str, Split]:
    """Who serves each version of a Model, by DeployedModel, each by its part of the replicas that answer.

    `versions` are those that the Model has: a DeployedModel may still run one that is gone. `servers` are
    DeployedModels by name, `offered` the Endpoints that are for those who ask. The weights are the smallest whole
    numbers of their proportion: one DeployedModel alone weighs 1 however many replicas it has, and its route stays.
    """
    serving: dict[str, Split] = {}
    for name, server in sorted(servers.items()):
        routed = server.model == model and server.version in versions and server.endpoint in offered
        if routed and server.answering:
            serving.setdefault(server.version, {})[name] = server.answering
    return {version: _reduce(weights) for version, weights in serving.items()}


def _reduce(weights: Split) -> Split:
    divisor = math.gcd(*weights.values())
    return {name: weight // divisor for name, weight in weights.items()}
