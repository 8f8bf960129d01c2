"""What whoever carries predictions is told, in whichever words: these paths lead to those Services. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pierhead_operator import names
from pierhead_operator.routing.split import Split
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import ClientConnectionConfig, Endpoint, Model

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
    resource = f"projects/{model.namespace}/models/{model.name}"
    rules = []
    for version in model.spec.versions:
        resources = [f"{resource}/versions/{name}" for name in (version.name, *version.aliases)]
        if version.name == model.spec.default_version:
            resources.insert(0, resource)
        if weights := serving.get(version.name):
            rules.append(
                Rule(
                    paths=[path for one in resources for path in _spellings(one, "predict")],
                    services={names.server(deployed_model): weight for deployed_model, weight in weights.items()},
                    # There is no endpoint that could ask for another one.
                    timeout=ClientConnectionConfig().inference_timeout,
                )
            )
    return rules


def _spellings(resource: str, verb: str) -> list[str]:
    # Gateways compare paths as they are sent, and some clients escape the colon.
    return [f"/v1/{resource}{colon}{verb}" for colon in (":", "%3A", "%3a")]
