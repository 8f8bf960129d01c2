"""What users of Kustomize build, with the Kustomize that kubectl brings, judged by a real API server."""

import shutil
from pathlib import Path

import pytest
import yaml

from charts import manifests
from tests.chart import try_install

REPOSITORY = Path(__file__).parents[2]


def build(kubectl, folder, *options):
    text = kubectl.in_any_namespace("kustomize", *options, str(REPOSITORY / folder))
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def test_committed_manifests_are_current(cluster):
    committed = (REPOSITORY / "config" / "default" / "pierhead.yaml").read_text()
    assert committed == manifests.render(Path(shutil.which("helm"))), "run `make manifests` and commit what it writes"


FROM_HELM = ("--enable-helm", "--load-restrictor=LoadRestrictionsNone")


@pytest.mark.parametrize(
    ("folder", "options"),
    [("config/default", ()), ("examples/kustomize/images", ()), ("examples/kustomize/helm", FROM_HELM)],
)
def test_api_server_takes_what_is_built(trial, folder, options):
    documents = build(trial, folder, *options)
    for document in documents:
        if document["metadata"].get("namespace") in ("models", "gateways"):  # that this cluster does not have
            document["metadata"]["namespace"] = trial.namespace
    assert len(try_install(trial, documents)) == len(documents)


def test_nothing_says_that_helm_has_installed_it(trial):
    labels = [document["metadata"].get("labels", {}) for document in build(trial, "config/default")]
    assert not any("helm.sh/chart" in one or "app.kubernetes.io/managed-by" in one for one in labels)


def test_no_tool_takes_the_definitions_away(trial):
    definitions = [one for one in build(trial, "config/default") if one["kind"] == "CustomResourceDefinition"]
    assert len(definitions) == 4
    for definition in definitions:
        annotations = definition["metadata"]["annotations"]
        assert annotations["kustomize.toolkit.fluxcd.io/prune"] == "disabled"
        assert annotations["argocd.argoproj.io/sync-options"] == "Prune=false,Delete=false"


def test_images_are_set_by_kustomize(trial):
    documents = build(trial, "examples/kustomize/images")
    pods = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    [container] = [one for pod in pods for one in pod["containers"] if one["name"] == "operator"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert container["image"] == "registry.example.com/pierhead/operator:0.2.0"
    assert environment["PIERHEAD_SERVER_IMAGE"] == "registry.example.com/pierhead/server:0.2.0"
    assert environment["PIERHEAD_OPENVINO_IMAGE"] == "registry.example.com/pierhead/server-openvino:0.2.0"


def test_health_check_comes_beside_what_argo_cd_has(kubectl):
    own = {"timeout.reconciliation": "180s"}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": own})
    [built] = build(kubectl, "config/argocd")
    del built["metadata"]["namespace"]
    manifest = yaml.safe_dump(built)
    kubectl("apply", "--server-side", "--field-manager", "pierhead-health", "--filename", "-", stdin=manifest)
    there = kubectl.get("configmap", "argocd-cm")["data"]
    script = (REPOSITORY / "config" / "argocd" / "health.lua").read_text()
    kinds = ("Model", "Endpoint", "DeployedModel", "BatchPredictionJob")
    assert there == own | {f"resource.customizations.health.pierhead.dev_{kind}": script for kind in kinds}
