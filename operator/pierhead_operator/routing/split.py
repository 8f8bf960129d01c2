"""How an endpoint's traffic is split: what is wanted, and what can be had now. Pure."""

from collections.abc import Collection, Mapping

from pierhead_operator.types import Endpoint

Split = dict[str, int]


def wanted_split(endpoint: Endpoint, deployed_models: Collection[str]) -> Split | None:
    """The split that the spec asks for: its own, or all traffic to the only DeployedModel.

    None where it is not told: no DeployedModel, or several and no split.
    """
    return compute_wanted_split(endpoint.spec.traffic_split, deployed_models)


def compute_wanted_split(given: Mapping[str, int] | None, deployed_models: Collection[str]) -> Split | None:
    """The same of a spec's `trafficSplit`."""
    if given is not None:
        return dict(given)
    if len(deployed_models) == 1:
        return dict.fromkeys(deployed_models, 100)
    return None


def compute_effective_split(wanted: Mapping[str, int] | None, serving: Collection[str], previous: Split) -> Split:
    """The split that can be had now: weight only on DeployedModels in `serving`, summing to 100, or empty.

    A serving DeployedModel gets at least what it is wanted to get. The weight of the others stays where it was: on
    those that had more than they are wanted to get; where there are none (a DeployedModel broke down), it goes to the
    serving ones by their wanted weights. A DeployedModel of wanted weight 0 gets nothing that it did not have before.
    Applying it again to its own result changes nothing. Without a wanted split the previous one is kept.
    """
    if wanted is None:
        return _shares(100, {name: weight for name, weight in previous.items() if name in serving})
    effective = {name: weight for name, weight in wanted.items() if name in serving}
    waiting = 100 - sum(effective.values())
    if not waiting:
        return {name: weight for name, weight in wanted.items() if weight}
    surplus = {
        name: weight - wanted.get(name, 0)
        for name, weight in previous.items()
        if name in serving and weight > wanted.get(name, 0)
    }
    for name, share in _shares(waiting, surplus or effective).items():
        effective[name] = effective.get(name, 0) + share
    return {name: weight for name, weight in effective.items() if weight} if sum(effective.values()) == 100 else {}


def _shares(total: int, weights: Mapping[str, int]) -> Split:
    """`total` in whole parts proportional to `weights` (largest remainder; ties by name); empty if all are 0."""
    whole = sum(weights.values())
    if not whole:
        return {}
    shares = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return {name: share for name, share in shares.items() if share}
