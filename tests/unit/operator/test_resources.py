"""Builders against golden manifests: a change of what is built shows in the diff of a golden file."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pierhead_operator.resources import Serving, desired_objects, is_owned, mark_applied, needs_apply, owns_replicas
from pierhead_operator.routing import make_http_route
from pierhead_operator.types import DeployedModel

from tests.unit.operator.conftest import make_deployed_model

GOLDEN = Path(__file__).parents[2] / "golden"

CASES = {
    "automatic": {},
    "autoscaled-gpu": {
        "modelVersion": "2",
        "dedicatedResources": {
            "machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1},
            "minReplicaCount": 1,
            "maxReplicaCount": 4,
            "autoscalingMetricSpecs": [{"metricName": "cpu/utilization", "target": 75}],
        },
    },
    "fixed-three": {"dedicatedResources": {"minReplicaCount": 3}},
}


def _serving(model, settings, spec):
    dm = DeployedModel.model_validate(make_deployed_model(**spec))
    version = model.spec.version(dm.spec.model_version or "1")
    return Serving(dm, model, version, settings)


@pytest.mark.parametrize("case", CASES)
def test_desired_objects(case, model, settings):
    objects = desired_objects(_serving(model, settings, CASES[case]))
    golden = GOLDEN / case / "objects.yaml"
    assert objects == list(yaml.safe_load_all(golden.read_text()))


def test_env_of_the_installation_takes_the_place_of_ours(model, settings):
    own = [{"name": "PIERHEAD_WORKERS", "value": "4"}]
    changed = settings.model_copy(update={"server": settings.server.model_copy(update={"env": own})})
    deployment = desired_objects(_serving(model, changed, {}))[1]
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [variable for variable in env if variable["name"] == "PIERHEAD_WORKERS"] == own


def test_pods_share_the_cache_of_compiled_forms(model, settings):
    claim = {"persistentVolumeClaim": {"claimName": "compiled"}}
    changed = settings.model_copy(update={"server": settings.server.model_copy(update={"compiled_cache": claim})})
    pod = desired_objects(_serving(model, changed, {}))[1]["spec"]["template"]["spec"]
    assert {"name": "compiled", **claim} in pod["volumes"]
    (container,) = pod["containers"]
    assert {"name": "compiled", "mountPath": "/compiled"} in container["volumeMounts"]
    told = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert told["PIERHEAD_COMPILED_DIR"] == "/compiled"
    assert "PIERHEAD_COMPILE" not in told


@pytest.mark.parametrize(("allow_code", "told"), [(True, ["true"]), (False, [])])
def test_server_is_told_whether_code_may_run(model, settings, allow_code, told):
    serving = _serving(model, settings, {})
    serving = replace(serving, version=serving.version.model_copy(update={"allow_code": allow_code}))
    env = desired_objects(serving)[1]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert [variable["value"] for variable in env if variable["name"] == "PIERHEAD_ALLOW_CODE"] == told


def test_http_route(endpoint, settings):
    golden = GOLDEN / "route" / "objects.yaml"
    assert make_http_route(endpoint, {"photos-1": 80, "photos-2": 20}, settings) == yaml.safe_load(golden.read_text())


def test_http_route_without_gateway_is_refused(endpoint, settings):
    bare = settings.model_copy(update={"routing": settings.routing.model_copy(update={"gateway": None})})
    with pytest.raises(ValueError, match=r"routing\.gateway"):
        make_http_route(endpoint, {"photos-1": 100}, bare)


def _live(manifest):
    """A manifest as the API server gives it back: with defaults and what others wrote."""
    spec = {**manifest["spec"], "progressDeadlineSeconds": 600}
    return {**manifest, "spec": spec, "status": {"replicas": 1}}


def test_needs_apply_stable_no_writes(model, settings):
    for manifest in desired_objects(_serving(model, settings, CASES["autoscaled-gpu"])):
        marked = mark_applied(manifest)
        assert not needs_apply(marked, _live(marked))


def test_needs_apply_after_changes(model, settings):
    deployment = desired_objects(_serving(model, settings, {}))[1]
    marked = mark_applied(deployment)
    assert needs_apply(marked, None)
    by_hand = _live(marked)
    by_hand["spec"]["replicas"] = 5
    assert needs_apply(marked, by_hand)
    fewer = {**deployment, "spec": {key: value for key, value in deployment["spec"].items() if key != "replicas"}}
    assert needs_apply(mark_applied(fewer), _live(marked)), "a field that is given up has to be sent, too"


def test_is_owned(deployed_model, model, settings):
    service = desired_objects(_serving(model, settings, {}))[0]
    assert is_owned(service, deployed_model)
    assert not is_owned({"metadata": {"name": "other"}}, deployed_model)
    reborn = DeployedModel.model_validate(
        make_deployed_model() | {"metadata": {**make_deployed_model()["metadata"], "uid": "new"}}
    )
    assert not is_owned(service, reborn), "a namesake's objects are not ours"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"manager": "pierhead", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, True),
        ({"manager": "pierhead", "fieldsV1": {"f:spec": {"f:template": {}}}}, False),
        ({"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, False),
        ({"manager": "pierhead", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}, False),
    ],
)
def test_owns_replicas(entry, expected):
    assert owns_replicas({"metadata": {"managedFields": [entry]}}) is expected
