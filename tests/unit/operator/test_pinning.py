"""The annotation that holds what pods were made with: what is in it, and who reads it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from pierhead_operator import names
from pierhead_operator.pinning import add_told, describe_settings, describe_wish, find_told, mark_pinned, pin
from pierhead_operator.resources import Serving, find_limits, make_deployment
from pierhead_operator.settings import MachineClass, OperatorSettings, ServerSettings
from pierhead_operator.types import (
    DedicatedResources,
    DeployedModel,
    DeployedModelSpec,
    Endpoint,
    MachineSpec,
    Model,
    PodOverrides,
)
from pydantic import Field

from tests.releases import REPOSITORY, find_releases, unpack
from tests.unit.operator.conftest import SERVED, STARTING, make_deployed_model, make_endpoint, make_model
from tests.unit.operator.test_resources import CASES

OF_0_1 = {"modelVersion": "1"}  # a status as release 0.1.0 leaves it


def make_serving(settings, spec=None, kind=DeployedModel, endpoint=None, status=None):
    raw = {**make_deployed_model(**(spec or {})), "status": OF_0_1 if status is None else status}
    dm, model = kind.model_validate(raw), Model.model_validate(make_model())
    version = model.spec.version(dm.spec.model_version or "1")
    there = Endpoint.model_validate(endpoint or make_endpoint())
    return Serving(dm, model, version, settings, there, find_limits(there))


def deploy(serving, status=SERVED):
    return {**mark_pinned(make_deployment(serving), serving), "status": status}


def template(serving):
    return make_deployment(serving)["spec"]["template"]


def find_pin(live):
    return live["metadata"]["annotations"][names.ANNOTATION_PINNED]


def upgrade(settings, **server):
    """The settings after an upgrade: nothing of what pods are made of is as it was."""
    server = {"image": "pierhead/server:new", "env": [], "resources": {}} | server
    return settings.model_copy(update={"server": settings.server.model_copy(update=server)})


def test_pin_is_stable(settings):
    live = deploy(make_serving(settings))
    pinned = pin(make_serving(upgrade(settings)), live)
    assert deploy(pinned) == live


def test_folder_for_compiled_forms_restarts_nothing_that_was_there_before_it(settings):
    live = deploy(make_serving(settings))
    pinned = pin(make_serving(upgrade(settings, compiled_cache={"emptyDir": {}})), live)
    assert deploy(pinned) == live


def test_version_that_brings_code_shares_compiled_forms_on_where_it_did(settings):
    """As 0.1.0 had it; what is made from now on has a folder of its own."""
    shared = upgrade(settings, compiled_cache=MOUNT)
    serving = make_serving(shared)
    serving = replace(serving, version=serving.version.model_copy(update={"allow_code": True}))
    live = deploy(serving)
    assert deploy(pin(serving, live)) == live
    assert pin(serving, None).settings.server.compiled_cache == {"emptyDir": {}}
    assert pin(serving, {**live, "status": {}}).settings.server.compiled_cache == {"emptyDir": {}}


@pytest.mark.parametrize("before", [False, True])
def test_another_choice_of_the_user_restarts_nothing(settings, before):
    live = deploy(make_serving(upgrade(settings, arbitrary_user=before)))
    pinned = pin(make_serving(upgrade(settings, arbitrary_user=not before)), live)
    assert deploy(pinned) == live


def test_only_what_pods_are_made_of_is_pinned(settings):
    live = deploy(make_serving(settings))
    rollout = settings.rollout.model_copy(update={"capacity_wait_seconds": 1})
    pinned = pin(make_serving(upgrade(settings).model_copy(update={"rollout": rollout})), live)
    assert pinned.settings.server == settings.server
    assert pinned.settings.rollout == rollout


NOTHING_PINNED = {
    "no Deployment": None,
    "one of before pinning": {"metadata": {"name": "dm-photos-1"}},
    "spoilt by hand": {"metadata": {"annotations": {names.ANNOTATION_PINNED: "{"}}},
    "of a later operator": {"metadata": {"annotations": {names.ANNOTATION_PINNED: '{"made_for": "3"}'}}},
}


@pytest.mark.parametrize("live", NOTHING_PINNED.values(), ids=NOTHING_PINNED.keys())
def test_without_a_pin_the_present_settings_count(settings, live):
    serving = make_serving(settings)
    assert pin(serving, live) == serving


def test_pin_of_another_template_is_not_followed(settings):
    live = deploy(make_serving(settings))
    live["metadata"]["annotations"][names.ANNOTATION_PINNED] = find_pin(live).replace('"template":1', '"template":2')
    serving = make_serving(upgrade(settings))
    assert pin(serving, live) == serving


# What a status tells, which nobody writes but operators


def tell(*pins):
    """The status of a DeployedModel of this release."""
    return {**OF_0_1, "pins": list(pins)}


def change_pin(live, change):
    """The Deployment as a tenant may write it."""
    value = json.loads(find_pin(live))
    change(value)
    annotations = {**live["metadata"]["annotations"], names.ANNOTATION_PINNED: json.dumps(value)}
    return {**live, "metadata": {**live["metadata"], "annotations": annotations}}


def test_pin_that_the_status_tells_is_followed(settings):
    before = make_serving(settings)
    told = describe_settings(before)
    for pins in ([told], [told, "other"], ["other", told]):
        after = make_serving(upgrade(settings), status=tell(*pins))
        assert deploy(pin(after, deploy(before))) == deploy(before)


@pytest.mark.parametrize("status", [tell(), tell("other"), {}], ids=["none", "another", "never looked at"])
def test_pin_that_the_status_does_not_tell_is_not_followed(settings, status):
    after = make_serving(upgrade(settings), status=status)
    assert pin(after, deploy(make_serving(settings))) == after


MOUNT = {"hostPath": {"path": "/"}}
# What of it decides what pods are.
FORGED = {
    "image": lambda value: value["server"].update(image="evil.example/any:1"),
    "variable": lambda value: value["server"].update(env=[{"name": "LD_PRELOAD", "value": "/models/x.so"}]),
    "Secret": lambda value: value["server"].update(env_from=[{"secretRef": {"name": "theirs"}}]),
    "artifacts": lambda value: value["server"].update(artifact_cache=MOUNT),
    "compiled forms": lambda value: value["server"].update(compiled_cache=MOUNT),
    "resources": lambda value: value["server"].update(resources={"requests": {"cpu": "64"}}),
    "machine": lambda value: value["machines"]["machine_types"].update(small={"node_selector": {"pool": "theirs"}}),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_pin_that_somebody_else_wrote_is_not_followed(settings, change):
    machines = {"machineTypes": {"small": {"nodeSelector": {"size": "small"}}}}
    settings = OperatorSettings.model_validate(settings.model_dump(by_alias=True) | {"machines": machines})
    small = {"dedicatedResources": {"machineSpec": {"machineType": "small"}}}
    before = make_serving(settings, small)
    after = make_serving(upgrade(settings), small, status=tell(describe_settings(before)))
    assert pin(after, deploy(before)) != after
    assert pin(after, change_pin(deploy(before), change)) == after


# Of release 0.1.0, which tells none: what is accepted then, and is told from then on.


def _spoil(**server):
    return lambda value: value["server"].update(server)


ODD = [_spoil(env=[{"name": name}]) for name in (4, {"a": 1}, None)] + [_spoil(env=[{}])]
OTHER_CODE = {
    "code": _spoil(env=[{"name": "pierhead_allow_code", "value": "true"}]),
    "artifact": _spoil(env=[{"name": "PIERHEAD_ARTIFACT_URI", "value": "gs://mallory/x"}]),
    "library": _spoil(env=[{"name": "LD_PRELOAD", "value": "/models/x.so"}]),
    "folder for artifacts": _spoil(artifact_cache=MOUNT),
    "folder for compiled forms": _spoil(compiled_cache=MOUNT),
}


@pytest.mark.parametrize("change", [*ODD, *OTHER_CODE.values()], ids=[*range(len(ODD)), *OTHER_CODE])
def test_pin_of_0_1_that_runs_other_code_or_makes_no_sense_is_not_followed(settings, change):
    after = make_serving(upgrade(settings))
    live = change_pin(deploy(make_serving(settings)), change)
    assert pin(after, live) == after
    assert find_told(after.deployed_model, live, after.settings) == []


@pytest.mark.parametrize("change", OTHER_CODE.values(), ids=OTHER_CODE.keys())
def test_pin_of_0_1_is_followed_in_what_the_installation_does_by_itself(settings, change):
    value = {"server": settings.server.model_dump(mode="json")}
    change(value)
    present = settings.model_copy(update={"server": ServerSettings.model_validate(value["server"])})
    after = make_serving(present.model_copy(update={"location": "new"}))
    live = change_pin(deploy(make_serving(settings)), change)
    assert pin(after, live) != after


def test_settings_that_are_told_are_those_of_the_live_pods_and_of_those_to_come(settings):
    before, after, later = (make_serving(upgrade(settings, image=image)) for image in "abc")
    first, second, third = (describe_settings(one) for one in (before, after, later))
    assert add_told([], before) == [first]
    assert add_told([first], before) == [first]
    assert add_told([first], after) == [first, second]
    assert add_told([first, second], later) == [first, third]


def test_settings_that_pods_are_not_made_of_are_not_told(settings):
    server = settings.server.model_copy(update={"allowed_env": ["A"]})
    machines = settings.machines.model_copy(update={"machine_types": {"other": MachineClass()}})
    others = settings.model_copy(update={"server": server, "machines": machines, "location": "other"})
    assert describe_settings(make_serving(others)) == describe_settings(make_serving(settings))


def test_pin_is_small():
    """With the chart's own values, which know 60 machines."""
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())
    fields = {field.alias for field in ServerSettings.model_fields.values()}
    server = {key: value for key, value in values["server"].items() if key in fields}
    settings = OperatorSettings.model_validate({"server": server, "machines": values["machines"]})
    machine = {"machineType": "g2-standard-4", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 1}
    live = deploy(make_serving(settings, {"dedicatedResources": {"machineSpec": machine}}))
    assert len(find_pin(live)) < 600


# A later release


class LaterOverrides(PodOverrides):
    added: str = "x"


class LaterMachine(MachineSpec):
    added: str = "x"


class LaterResources(DedicatedResources):
    machine_spec: LaterMachine = Field(default_factory=LaterMachine)


class LaterSpec(DeployedModelSpec):
    pod_overrides: LaterOverrides = Field(default_factory=LaterOverrides)
    dedicated_resources: LaterResources | None = None
    added: str = "x"


class LaterDeployedModel(DeployedModel):
    spec: LaterSpec


SPEC = {"podOverrides": {"labels": {"team": "a"}}, "dedicatedResources": {"machineSpec": {"machineType": "small"}}}


@pytest.mark.parametrize("spec", [{}, SPEC], ids=["nothing given", "all given"])
def test_field_that_is_added_with_a_default_is_no_other_wish(settings, spec):
    before, after = make_serving(settings, spec), make_serving(settings, spec, LaterDeployedModel)
    assert describe_wish(before) == describe_wish(after)


@pytest.mark.parametrize(
    "changed",
    [
        {"added": "y"},
        {"podOverrides": {"labels": {"team": "a"}, "added": "y"}},
        {"dedicatedResources": {"machineSpec": {"machineType": "small", "added": "y"}}},
    ],
)
def test_field_that_is_added_is_another_wish_once_it_is_set(settings, changed):
    before, after = (make_serving(settings, spec, LaterDeployedModel) for spec in (SPEC, SPEC | changed))
    assert describe_wish(before) != describe_wish(after)


# The release before

# What the operator of a release makes of DeployedModels and their live Deployments.
RELEASED = """
import json, sys
from pierhead_operator.pinning import mark_pinned, pin_settings
from pierhead_operator.resources import Serving, make_deployment
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import DeployedModel, Endpoint, Model

def deploy(case):
    dm, model = DeployedModel.model_validate(case["dm"]), Model.model_validate(case["model"])
    endpoint = Endpoint.model_validate(case["endpoint"])
    settings = pin_settings(dm, case["live"], OperatorSettings.model_validate(case["settings"]))
    version = model.spec.version(dm.spec.model_version or "1")
    return mark_pinned(make_deployment(Serving(dm, model, version, settings, endpoint)), dm, settings)

print(json.dumps([deploy(case) for case in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """What the operator of the last release makes, by the same cases: from (Serving, live Deployment)."""
    root = unpack(find_releases()[-1], tmp_path_factory.mktemp("release"))
    environment = {**os.environ, "PYTHONPATH": str(root / "operator")}

    def deploy_all(cases):
        given = [_describe(serving, live) for serving, live in cases]
        ran = subprocess.run(
            [sys.executable, "-c", RELEASED],
            input=json.dumps(given),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return json.loads(ran.stdout)

    return deploy_all


# What came after it, or has nothing to do with pods.
NOT_OF_PODS = {
    "batch": True,
    "network_policy": True,
    "routing": True,
    "server": {"allowed_env", "openvino_image", "arbitrary_user"},
}


def _describe(serving, live):
    settings = serving.settings.model_dump(mode="json", by_alias=True, exclude=NOT_OF_PODS)
    parts = {"dm": serving.deployed_model, "model": serving.model, "endpoint": serving.endpoint}
    return {name: part.dump() for name, part in parts.items()} | {"settings": settings, "live": live}


CHANGED = {
    "automatic": {"automaticResources": {"minReplicaCount": 2}},
    "renamed": {"displayName": "Photographs"},
    "scaled": {"automaticResources": {"maxReplicaCount": 9}},
    "in other words": {"dedicatedResources": {"machineSpec": {}}, "modelVersion": "1"},
}


def make_cases(settings):
    """A DeployedModel of each golden manifest, before and after an upgrade of the installation's settings."""
    for case in CASES.values():
        data = settings.model_dump(by_alias=True)
        sections = {name: (data[name] or {}) | fields for name, fields in case.settings.items()}
        sections.pop("networkPolicy", None)
        before = OperatorSettings.model_validate(data | sections)
        endpoint = make_endpoint()
        endpoint["spec"] = case.endpoint or {}
        yield tuple(make_serving(one, case.spec, endpoint=endpoint) for one in (before, upgrade(before)))


def test_upgrade_from_the_last_release_restarts_no_pod(settings, released):
    befores, afters = zip(*make_cases(settings), strict=True)
    for made, before, after in zip(released([(one, None) for one in befores]), befores, afters, strict=True):
        assert made["spec"]["template"] == template(before), "what is made anew is as it was"
        elsewhere = replace(after, settings=after.settings.model_copy(update={"location": "new"}))
        assert template(pin(elsewhere, {**made, "status": SERVED})) == made["spec"]["template"]


def test_way_back_to_the_last_release_restarts_no_pod(settings, released):
    befores, afters = zip(*make_cases(settings), strict=True)
    lives = [deploy(one) for one in befores]
    rewritten = released(list(zip(afters, lives, strict=True)))
    for before, live, again, after in zip(befores, lives, rewritten, afters, strict=True):
        assert again["spec"]["template"] == live["spec"]["template"]
        # And on again: the release wrote the annotation in its own way, and the status not at all, or without pins.
        assert template(pin(after, {**again, "status": SERVED})) == live["spec"]["template"]
        told = after.deployed_model.status.model_copy(update={"pins": [describe_settings(before)]})
        kept = replace(after, deployed_model=after.deployed_model.model_copy(update={"status": told}))
        assert template(pin(kept, {**again, "status": SERVED})) == live["spec"]["template"]


@pytest.mark.parametrize("spec", CHANGED.values(), ids=CHANGED.keys())
def test_what_says_the_same_restarts_no_pod_on_the_way_back(settings, released, spec):
    before, after = make_serving(settings), make_serving(upgrade(settings), spec)
    live = deploy(pin(after, deploy(before)))
    [again] = released([(after, live)])
    assert again["spec"]["template"] == template(before)


def test_what_the_last_release_made_and_never_served_takes_the_present_settings(settings, released):
    after = make_serving(upgrade(settings))
    [made] = released([(make_serving(settings), None)])
    pinned = pin(after, {**made, "status": STARTING})
    assert template(pinned) == template(after)
