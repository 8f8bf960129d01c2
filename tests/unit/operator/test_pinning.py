"""Pods stay as they were made until their DeployedModel changes, or somebody asks."""

import pytest
from pierhead_operator import names
from pierhead_operator.pinning import mark_pinned, pin_settings
from pierhead_operator.types import DeployedModel

from tests.unit.operator.conftest import make_deployed_model


def _deployed_model(spec=None, **annotations):
    raw = make_deployed_model(**(spec or {}))
    raw["metadata"]["annotations"] = annotations
    return DeployedModel.model_validate(raw)


def _upgraded(settings):
    server = settings.server.model_copy(update={"image": "pierhead/server:new", "env": []})
    return settings.model_copy(update={"server": server, "location": "new"})


@pytest.fixture
def live(settings):
    return mark_pinned({"kind": "Deployment", "metadata": {"name": "dm-photos-1"}}, _deployed_model(), settings)


def test_upgrade_leaves_pods_as_they_are(settings, live):
    pinned = pin_settings(_deployed_model(), live, _upgraded(settings))
    assert pinned.server == settings.server
    assert pinned.location == "new", "only what pods are made of is pinned"


CHANGES = {
    "its version changed": _deployed_model({"modelVersion": "2"}),
    "its machine changed": _deployed_model({"dedicatedResources": {"machineSpec": {"machineType": "large"}}}),
    "its pods changed": _deployed_model({"podOverrides": {"labels": {"team": "a"}}}),
    "somebody asked": _deployed_model(**{names.ANNOTATION_RENEW: "2026-11-22"}),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES.keys())
def test_change_takes_the_present_settings(settings, live, changed):
    assert pin_settings(changed, live, _upgraded(settings)).server.image == "pierhead/server:new"


NO_CHANGES = {
    "its name": _deployed_model({"displayName": "Photographs"}),
    "its replicas": _deployed_model({"automaticResources": {"minReplicaCount": 3}}),
}


@pytest.mark.parametrize("changed", NO_CHANGES.values(), ids=NO_CHANGES.keys())
def test_what_pods_are_not_made_of_leaves_them_as_they_are(settings, live, changed):
    assert pin_settings(changed, live, _upgraded(settings)).server == settings.server


NOTHING_PINNED = {
    "no Deployment": None,
    "one of before pinning": {"kind": "Deployment", "metadata": {"name": "dm-photos-1"}},
    "spoilt by hand": {"metadata": {"annotations": {names.ANNOTATION_PINNED: "{"}}},
    "of a later operator": {"metadata": {"annotations": {names.ANNOTATION_PINNED: '{"made_for": "3"}'}}},
}


@pytest.mark.parametrize("live", NOTHING_PINNED.values(), ids=NOTHING_PINNED.keys())
def test_without_a_pin_the_present_settings_count(settings, live):
    assert pin_settings(_deployed_model(), live, settings) == settings


def test_pin_is_stable(settings, live):
    pinned = pin_settings(_deployed_model(), live, _upgraded(settings))
    assert mark_pinned({"kind": "Deployment", "metadata": {"name": "dm-photos-1"}}, _deployed_model(), pinned) == live
