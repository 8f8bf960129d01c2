"""How an endpoint's traffic is split: what is wanted, and what can be had now. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pierhead_operator.records import SplitMark, find_marks
from pierhead_operator.types import DeployedModel, Endpoint

Split = dict[str, int]


@dataclass(frozen=True)
class Replicas:
    """Of a DeployedModel those that answer, and how many it always runs."""

    answering: int
    minimum: int


def count_replicas(dm: DeployedModel) -> Replicas:
    """The replicas of a DeployedModel, as its status and its spec say."""
    return Replicas(dm.status.available_replica_count, dm.spec.resources.min_replica_count)


def wanted_split(endpoint: Endpoint, deployed_models: Collection[str]) -> Split | None:
    """The split that the spec asks for: its own, or all traffic to the only DeployedModel.

    None where it is not told: no DeployedModel, or several and no split.
    """
    return compute_wanted_split(given_split(endpoint, deployed_models), deployed_models)


def given_split(endpoint: Endpoint, deployed_models: Collection[str]) -> Split | None:
    """The spec's `trafficSplit`, without what deployments that failed made of it."""
    return take_back(endpoint.spec.traffic_split, find_marks(endpoint), deployed_models)


def take_back(
    given: Mapping[str, int] | None, marks: Iterable[SplitMark], deployed_models: Collection[str]
) -> Split | None:
    """A spec's `trafficSplit` without what deployments that failed made of it; `marks` are the newest first.

    The spec is its author's, and stays. As long as nobody has written a split since, it is again what it was before.
    Where somebody has, who was deployed and is gone gets nothing, and the others have their parts of it.
    """
    marks = [*marks]
    split = None if given is None else dict(given)
    for one in marks:
        if not one.failed or one.deployed_model in deployed_models or split != one.split:
            break
        split = one.before
    for one in marks:
        if split and one.failed and one.deployed_model in split and one.deployed_model not in deployed_models:
            others = {name: weight for name, weight in split.items() if name != one.deployed_model}
            split = _shares(100, others) or split
    return split


def compute_wanted_split(given: Mapping[str, int] | None, deployed_models: Collection[str]) -> Split | None:
    """The wanted split where this one is given, if any."""
    if given is not None:
        return dict(given)
    if len(deployed_models) == 1:
        return dict.fromkeys(deployed_models, 100)
    return None


def compute_effective_split(
    wanted: Mapping[str, int] | None, replicas: Mapping[str, Replicas], previous: Split
) -> Split:
    """The split that can be had now: weight only on DeployedModels that answer, summing to 100, or empty.

    Weight is gained once as many replicas answer as `count_needed` says. Until then a DeployedModel has what it had,
    or as much as its part of all replicas that carry traffic or are to, whichever is more: no replica, old or new, gets
    more than it had. What was gained is kept while one replica answers.

    The weight that is not gained yet stays where it was: on those that had more than they are wanted to get; where
    there are none (a DeployedModel broke down), it goes to those that answer by their wanted weights. A DeployedModel
    of wanted weight 0 gets nothing that it did not have before. Applying it again to its own result changes nothing.
    Without a wanted split the previous one is kept.
    """
    serving = {name: one for name, one in replicas.items() if one.answering}
    if wanted is None:
        return keep_split(previous, serving)
    split = _move(wanted, serving, previous)
    # Where one has given away all that it had to give, the others may need fewer replicas. Weight only ever goes from
    # who has too much to who has too little, so that this ends.
    while (after := _move(wanted, serving, split)) != split:
        split = after
    return split


def count_needed(name: str, wanted: Mapping[str, int], replicas: Mapping[str, Replicas], previous: Split) -> int:
    """How many replicas have to answer for a DeployedModel to gain the whole weight that it is wanted to get.

    Its minimum, or as many as those have answering that it takes over from, whichever is smaller; one where there is
    nobody to take over from, for then any answer is better than none.
    """
    others = sum(replicas[giver].answering for giver in _surplus(wanted, replicas, previous))
    return max(1, min(replicas[name].minimum, others))


def keep_split(previous: Split, names: Collection[str]) -> Split:
    """What the previous split leaves for these DeployedModels, summing to 100, or empty."""
    return _shares(100, {name: weight for name, weight in previous.items() if name in names})


def _move(wanted: Mapping[str, int], serving: Mapping[str, Replicas], previous: Split) -> Split:
    """The split to which weight can move from the previous one."""
    surplus = _surplus(wanted, serving, previous)
    effective = {name: _gain(name, wanted, serving, previous) for name in wanted if name in serving}
    waiting = 100 - sum(effective.values())
    for name, share in _shares(waiting, surplus or effective).items():
        effective[name] = effective.get(name, 0) + share
    return {name: weight for name, weight in effective.items() if weight} if sum(effective.values()) == 100 else {}


def _gain(name: str, wanted: Mapping[str, int], serving: Mapping[str, Replicas], previous: Split) -> int:
    """What of its wanted weight a DeployedModel that answers can have."""
    weight, before = wanted[name], previous.get(name, 0)
    answering = serving[name].answering
    if before >= weight or answering >= count_needed(name, wanted, serving, previous):
        return weight
    together = sum(one.answering for other, one in serving.items() if wanted.get(other) or previous.get(other))
    return min(weight, max(before, 100 * answering // together))


def _surplus(wanted: Mapping[str, int], replicas: Mapping[str, Replicas], previous: Split) -> Split:
    """Those that answer and had more than they are wanted to get, and how much more."""
    return {
        name: weight - wanted.get(name, 0)
        for name, weight in previous.items()
        if name in replicas and replicas[name].answering and weight > wanted.get(name, 0)
    }


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
