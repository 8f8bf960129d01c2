"""Tables: how requests are read."""

import pytest
from pierhead_api.endpoints import UPDATABLE, DeployModelBody, EndpointBody
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.machines import DedicatedResources, MachineSpec
from pierhead_api.wire import (
    EMPTY,
    MAX_KEPT,
    TYPE,
    check_labels,
    drop_empty,
    dump_kept,
    parse,
    parse_mask,
    parse_time,
    to_beta,
)


@pytest.mark.parametrize("body", [{"display_name": "x"}, {"displayName": "x"}, {"displayName": "x", "labels": None}])
def test_either_case_and_null_is_read(body):
    assert parse(EndpointBody, body) == EndpointBody(display_name="x")


ACCELERATORS = {
    "number": (5, "NVIDIA_TESLA_T4"),
    "number as a float": (11.0, "NVIDIA_L4"),
    "name": ("NVIDIA_L4", "NVIDIA_L4"),
    "unspecified": (0, None),
    "unspecified by name": ("ACCELERATOR_TYPE_UNSPECIFIED", None),
    "one of the installation": ("MIG_1G", "MIG_1G"),
}


@pytest.mark.parametrize(("sent", "expected"), ACCELERATORS.values(), ids=ACCELERATORS.keys())
def test_accelerator_type(sent, expected):
    assert parse(MachineSpec, {"acceleratorType": sent}).accelerator_type == expected


@pytest.mark.parametrize(("sent", "expected"), [(2, 2), (2.0, 2), ("2", 2), (0, None), (None, None)])
def test_numbers(sent, expected):
    assert parse(DedicatedResources, {"maxReplicaCount": sent}).max_replica_count == expected


def test_beta_has_types_of_its_own():
    answer = {"done": True, "operations": [{"response": {"@type": f"{TYPE}Endpoint", "name": TYPE}}], "none": None}
    beta = to_beta(answer)
    assert beta["operations"] == [
        {"response": {"@type": "type.googleapis.com/google.cloud.aiplatform.v1beta1.Endpoint", "name": TYPE}}
    ]
    assert to_beta({"@type": EMPTY}) == {"@type": EMPTY}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+00:00"),
        ("2026-01-01T02:00:00.5+02:00", "2026-01-01T00:00:00.500000+00:00"),
        ("2026-01-01", "2026-01-01T00:00:00.000000+00:00"),
    ],
)
def test_times_are_texts_that_sort(text, expected):
    assert parse_time(text, "createTime") == expected


WRONG = {
    "scaled to zero": (DedicatedResources, {"minReplicaCount": 0}, "minReplicaCount: must be at least 1"),
    "unknown": (EndpointBody, {"foo": 1}, 'foo: Unknown name "foo": Cannot find field.'),
    "unknown below": (
        DeployModelBody,
        {"deployedModel": {"foo": 1}},
        'deployedModel.foo: Unknown name "foo": Cannot find field.',
    ),
    "missing": (DeployModelBody, {}, "deployedModel: Field required"),
    "another type": (EndpointBody, {"displayName": 1}, "displayName: Input should be a valid string"),
    "no percent": (DeployModelBody, {"deployedModel": {}, "trafficSplit": {"0": 101}}, "trafficSplit.0: Input should"),
    "half a replica": (
        DedicatedResources,
        {"minReplicaCount": 1.5},
        "minReplicaCount: Input should be a valid integer",
    ),
    "no accelerator": (MachineSpec, {"acceleratorType": 77}, "acceleratorType: there is no accelerator type of number"),
    "no object": (EndpointBody, [1], "Input should be"),
    "no body": (EndpointBody, None, "Input should be"),
    "a label that is none": (EndpointBody, {"labels": {"a": {}}}, "labels.a: Input should be a valid string"),
}


@pytest.mark.parametrize(("kind", "body", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(kind, body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse(kind, body)
    assert str(caught.value).startswith(message)


BETA = {
    "of a deployed model": (
        DeployModelBody,
        {"deployedModel": {"rolloutOptions": {"maxSurgeReplicas": 1}}},
        'deployedModel.rolloutOptions: Unknown name "rolloutOptions": Cannot find field.',
    ),
    "in snake case, and nothing in it": (DedicatedResources, {"scale_to_zero_spec": {}}, "scale_to_zero_spec: Unknown"),
    "of a machine": (MachineSpec, {"minGpuDriverVersion": ""}, "minGpuDriverVersion: Unknown name"),
    "with its default": (DeployModelBody, {"deployedModel": {"enableContainerLogging": False}}, "deployedModel.enable"),
}


@pytest.mark.parametrize(("kind", "body", "message"), BETA.values(), ids=BETA.keys())
def test_v1_has_no_fields_of_v1beta1(kind, body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse(kind, body)
    assert str(caught.value).startswith(message)
    parse(kind, body, beta=True)


def test_message_without_fields_of_v1beta1_is_of_either():
    resources = DedicatedResources(machine_spec=MachineSpec(machine_type="n1-standard-2"))
    assert parse(DedicatedResources, resources.model_dump(by_alias=True, exclude_none=True)) == resources


MASKS = {
    "camel": ("displayName,labels", {}, {"display_name", "labels"}),
    "snake, with spaces": ("display_name, traffic_split", {}, {"display_name", "traffic_split"}),
    "all": ("*", {}, set(UPDATABLE)),
    "none: what the body has": ("", {"displayName": "x", "etag": "y", "name": "z"}, {"display_name"}),
}


@pytest.mark.parametrize(("mask", "body", "expected"), MASKS.values(), ids=MASKS.keys())
def test_parse_mask(mask, body, expected):
    assert parse_mask(mask, body, UPDATABLE) == expected


def test_mask_names_what_cannot_be_updated():
    with pytest.raises(InvalidArgumentError, match="updateMask: deployedModels cannot be updated"):
        parse_mask("displayName,deployedModels", {}, UPDATABLE)


@pytest.mark.parametrize("labels", [{"a": "b"}, {"a": ""}, {"A_b-c.d": "E_f"}, {"k" * 63: "v" * 63}])
def test_labels_that_kubernetes_takes(labels):
    assert check_labels(labels) == labels


@pytest.mark.parametrize("labels", [{"a/b": "c"}, {"-a": "b"}, {"": "b"}, {"a": "b c"}, {"a": "v" * 64}, {"a": "_"}])
def test_label_that_kubernetes_refuses_is_named(labels):
    [key] = labels
    with pytest.raises(InvalidArgumentError) as caught:
        check_labels(labels)
    assert str(caught.value).startswith(f"labels.{key}: ")


def test_kept_is_bounded():
    assert dump_kept({"a": "ü"}) == '{"a":"ü"}'
    with pytest.raises(InvalidArgumentError, match=f"metadata together must be at most {MAX_KEPT} bytes"):
        dump_kept({"metadata": "x" * MAX_KEPT})


def test_drop_empty_keeps_false_and_zero():
    assert drop_empty({"a": None, "b": "", "c": [], "d": {}, "e": 0, "f": False}) == {"e": 0, "f": False}
