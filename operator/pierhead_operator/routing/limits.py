"""To how many DeployedModels a provider's rule can lead. Pure."""

from collections.abc import Mapping

from pierhead_operator.routing.gateway_api import MAX_BACKENDS
from pierhead_operator.routing.split import Split
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import Model


def _find_limit(settings: OperatorSettings) -> int | None:
    return MAX_BACKENDS if settings.routing.provider == "gateway-api" else None


def explain_split(wanted: Split | None, settings: OperatorSettings) -> str | None:
    """Why the provider cannot split traffic as wanted; None where it can."""
    limit = _find_limit(settings)
    weighted = sum(1 for weight in (wanted or {}).values() if weight)
    if limit is None or weighted <= limit:
        return None
    provider = settings.routing.provider
    return f"{provider} leads to {limit} DeployedModels at most, and spec.trafficSplit gives weight to {weighted}"


def fit_split(effective: Split, kept: Split, wanted: Split | None, settings: OperatorSettings) -> Split:
    """The effective split where the provider can carry it, else `kept`, what is left of the previous one.

    It may lead to more than are wanted: those that were wanted before keep weight for those that do not serve yet.
    """
    limit = _find_limit(settings)
    if limit is None or (explain_split(wanted, settings) is None and len(effective) <= limit):
        return effective
    return kept if len(kept) <= limit else {}


def explain_model_limit(model: Model, serving: Mapping[str, Split], settings: OperatorSettings) -> str:
    """What a Model's own paths do not lead to, of more DeployedModels of a version than a rule takes; else empty."""
    limit = _find_limit(settings)
    over = [
        f"version {version.name} is served by {count} DeployedModels, its paths lead to {limit} of them"
        for version in model.spec.versions
        if limit and (count := len(serving.get(version.name, ()))) > limit
    ]
    return "; ".join(over)
