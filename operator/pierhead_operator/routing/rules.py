"""What whoever carries predictions is told, in whichever words: these paths lead to those Services. Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pierhead_operator import names
from pierhead_operator.routing.serving import name_versions
from pierhead_operator.routing.split import Split
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import ClientConnectionConfig, Endpoint, Model, ModelVersion

SERVICE_PORT = 80
RETRY_AFTER_SECONDS = 2  # for whom nobody serves now
# The caller's, for the gateway and the REST API alone: a model may be code of somebody else's.
SECRET_HEADERS = ["authorization"]


@dataclass(frozen=True)
class Refusal:
    """What a client is told instead of a prediction."""

    code: int  # HTTP's
    status: str  # the name of google.rpc's code
    message: str

    @property
    def is_temporary(self) -> bool:
        """Whether another try may help without anybody's doing."""
        return self.status == "UNAVAILABLE"

    def to_json(self) -> str:
        """Google's error body."""
        return json.dumps({"error": {"code": self.code, "message": self.message, "status": self.status}})


@dataclass(frozen=True)
class Rule:
    """Requests to any of `paths` are answered by Services, each by its weight."""

    paths: Sequence[str]
    services: Mapping[str, int]  # empty while nobody serves
    timeout: str  # such as 60s, after which the client is told 504
    mirror: str | None = None  # a Service that is sent copies
    mirror_percent: int = 100


def make_endpoint_rule(endpoint: Endpoint, effective: Split, mirror_to: str | None, settings: OperatorSettings) -> Rule:
    """An endpoint's predictions."""
    locations = dict.fromkeys([settings.location, *settings.other_locations])
    resources = [names.endpoint_resource(endpoint.namespace, location, endpoint.name) for location in locations]
    services = {names.server(deployed_model): weight for deployed_model, weight in effective.items()}
    mirror = endpoint.spec.mirror
    return Rule(
        paths=[path for one in resources for verb in ("predict", "rawPredict") for path in _spellings(one, verb)],
        services=services,
        timeout=endpoint.spec.client_connection_config.inference_timeout,
        mirror=names.server(mirror_to) if mirror_to else None,
        mirror_percent=mirror.percent if mirror else 100,
    )


def make_model_rules(model: Model, serving: Mapping[str, Split]) -> list[Rule]:
    """AI Platform's predictions of a Model: a rule for each version that somebody serves.

    `serving` has the weights of DeployedModels by version. A version is found by its aliases, too, and the default
    version also where none is named. AI Platform knows no location.
    """
    rules = []
    for version in model.spec.versions:
        if weights := serving.get(version.name):
            rules.append(
                Rule(
                    paths=[path for one in _name_resources(model, version) for path in _spellings(one, "predict")],
                    services={names.server(deployed_model): weight for deployed_model, weight in weights.items()},
                    # There is no endpoint that could ask for another one.
                    timeout=ClientConnectionConfig().inference_timeout,
                )
            )
    return rules


def _name_resources(model: Model, version: ModelVersion) -> list[str]:
    """What AI Platform's paths call a version: all in its words, and all in Kubernetes', which mostly are the same.

    Not each with each: a rule takes so many paths, and a version has up to eight aliases.
    """
    meant = name_versions(model)
    aliases = [alias for alias in version.aliases if meant[alias] == version.name]

    def call(spell: Callable[[str], str]) -> list[str]:
        parent = f"projects/{model.namespace}/models/{spell(model.name)}"
        named = [f"{parent}/versions/{name}" for name in (spell(version.name), *aliases)]
        return [parent, *named] if version.name == model.spec.default_version else named

    return list(dict.fromkeys([*call(names.ai_platform), *call(str)]))


def _spellings(resource: str, verb: str) -> list[str]:
    # Gateways compare paths as they are sent, and some clients escape the colon.
    return [f"/v1/{resource}{colon}{verb}" for colon in (":", "%3A", "%3a")]
