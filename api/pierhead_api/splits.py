"""How the wanted split of an endpoint changes when models are deployed and undeployed. Pure."""

from collections.abc import Collection, Mapping, Sequence

from pierhead_operator.routing import Split, wanted_split
from pierhead_operator.types import Endpoint

from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError

NEW = "0"  # in a split: the model that is being deployed


def check_split(split: Mapping[str, int], deployed: Collection[str]) -> Split:
    """`split`, if it names only what is deployed and sums to 100; raises InvalidArgumentError."""
    if unknown := sorted(set(split) - set(deployed)):
        there = ", ".join(sorted(deployed)) or "nothing"
        raise InvalidArgumentError(f"{unknown[0]} is not deployed on this endpoint; {there} is", "trafficSplit")
    total = sum(split.values())
    if total != 100:
        raise InvalidArgumentError(f"must sum to 100, not {total}", "trafficSplit")
    return dict(split)


def decide_deploy_split(
    endpoint: Endpoint, deployed: Collection[str], asked: Mapping[str, int], new: str
) -> Split | None:
    """The split once `new` is deployed beside `deployed`; None where the one that is there stays.

    Without one asked for, the first model gets all traffic, and a further one none: what the only one gets without a
    word has then to be said. Raises InvalidArgumentError.
    """
    if asked:
        named = check_split(asked, {*deployed, NEW})
        return {new if name == NEW else name: weight for name, weight in named.items()}
    if not deployed:
        return {new: 100}
    # What a deployment that failed left in the spec goes with the next write.
    wanted = wanted_split(endpoint, deployed)
    return wanted if wanted != endpoint.spec.traffic_split else None


def decide_undeploy_split(
    endpoint: Endpoint, deployed: Collection[str], asked: Mapping[str, int], leaving: str
) -> Split | None:
    """The split of the rest once `leaving` is undeployed; None where nothing is left to tell.

    Raises InvalidArgumentError, and FailedPreconditionError where it has traffic that nobody is said to take over.
    """
    rest = [name for name in deployed if name != leaving]
    if not rest:
        return None
    if asked.get(leaving):
        raise InvalidArgumentError(f"{leaving} is being undeployed, and must get nothing", "trafficSplit")
    others = {name: weight for name, weight in asked.items() if name != leaving}
    wanted = wanted_split(endpoint, deployed)
    if wanted is None and sum(others.values()) != 100:
        return None  # there is no split: Google's SDK makes one of the nothing that it finds
    if others:
        return check_split(others, rest)
    if wanted is None:
        return None
    if wanted.get(leaving):
        raise FailedPreconditionError(
            f"{leaving} gets {wanted[leaving]} % of the traffic: give the split of the rest in trafficSplit"
        )
    return {name: weight for name, weight in wanted.items() if name != leaving}


def decide_handover_split(endpoint: Endpoint, deployed: Sequence[str], leaving: Collection[str]) -> Split | None:
    """The split in which the first of those that stay has what `leaving` had; None where the one that is there stays.

    `deployed` is in the order of their deployment.
    """
    staying = [name for name in deployed if name not in leaving]
    wanted = wanted_split(endpoint, deployed) or {}
    rest = {name: weight for name, weight in wanted.items() if name not in leaving}
    given = sum(wanted.values()) - sum(rest.values())
    if not staying or not given:
        return None
    return {**rest, staying[0]: rest.get(staying[0], 0) + given}
