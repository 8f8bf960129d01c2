"""The schemas of Kubernetes' own types: they have all fields that Kubernetes' have, and no others."""

import inspect
from typing import get_args

import pytest
from kubernetes import client
from pierhead_operator import pod_fields
from pierhead_operator.schema import ApiObject

# Ours -> Kubernetes' of the same fields, where they are called otherwise.
OTHERS = {
    "KeySelector": ("ConfigMapKeySelector", "SecretKeySelector"),
    "NodeFieldRequirement": ("NodeSelectorRequirement",),
    "PodAffinity": ("PodAffinity", "PodAntiAffinity"),
}
OURS = {
    name: one
    for name, one in inspect.getmembers(pod_fields, inspect.isclass)
    if issubclass(one, ApiObject) and one is not ApiObject
}
PAIRS = [(ours, theirs) for ours in OURS for theirs in OTHERS.get(ours, (ours,))]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_type_has_kubernetes_own_fields(ours, theirs):
    fields, known = OURS[ours].model_fields, getattr(client, f"V1{theirs}").model_fields
    assert fields.keys() == known.keys()
    required = {name for name, field in known.items() if field.is_required()}
    assert required <= {name for name, field in fields.items() if field.is_required()}


def _find_types(annotation):
    yield annotation
    for part in get_args(annotation):
        yield from _find_types(part)


def test_every_type_is_reached_from_those_that_pods_are_given():
    reached = {pod_fields.EnvVar, pod_fields.Toleration, pod_fields.Affinity, pod_fields.PodResourceClaim}
    new = reached
    while new:
        found = {kind for one in new for field in one.model_fields.values() for kind in _find_types(field.annotation)}
        new = {kind for kind in found if kind in OURS.values()} - reached
        reached |= new
    assert reached == set(OURS.values())


def test_schema_takes_no_field_as_given_where_it_is_not():
    """A default that is filled in would be another pod template, and so another pod."""
    for one in OURS.values():
        assert not any(field.default for field in one.model_fields.values() if not field.is_required())
