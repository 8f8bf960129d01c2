"""What clients are told while nobody answers an endpoint, through whichever provider. Pure."""

from collections.abc import Mapping

from pierhead_operator.routing.rules import Refusal
from pierhead_operator.routing.split import Split, wanted_split
from pierhead_operator.types import Endpoint

_MOST_NAMED = 5


def explain_refusal(endpoint: Endpoint, causes: Mapping[str, str]) -> Refusal:
    """What a client is told who asks for a prediction while nobody serves.

    `causes` has, of each DeployedModel of the endpoint, the reason why it does not serve; an empty one where it does.
    Reasons alone: a condition's message may quote the log of a pod, and whoever reaches the gateway reads this.
    """
    if not causes:
        return Refusal(400, "FAILED_PRECONDITION", f"nothing is deployed on the endpoint {endpoint.name}")
    wanted = wanted_split(endpoint, causes)
    cause = "its trafficSplit is missing" if wanted is None else _render_causes(wanted, causes)
    return Refusal(503, "UNAVAILABLE", f"no DeployedModel of the endpoint {endpoint.name} answers: {cause}")


def _render_causes(wanted: Split, causes: Mapping[str, str]) -> str:
    found = [
        f"{name} ({causes.get(name, 'not found')})"
        for name, weight in sorted(wanted.items())
        if weight and causes.get(name) != ""
    ]
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return ", ".join(found[:_MOST_NAMED]) + more if found else "its condition Ready has the cause"
