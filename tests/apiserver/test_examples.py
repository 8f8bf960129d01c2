"""The manifests and chart values of the examples and of the documentation, as a real API server and Helm take them."""

import json

import pytest
import yaml

from tests.chart import render
from tests.documents import PAGES, REPOSITORY, find_blocks, name_of

OURS = "pierhead.dev/v1"
CLUSTER_SCOPED = ("GatewayClass",)


def _manifests(text):
    return [one for one in yaml.safe_load_all(text) if one]


def _find_blocks(wanted):
    """The blocks of YAML that `wanted` takes, each with a name for its test."""
    return {
        f"{name_of(page)}-{number}": block.text
        for page in PAGES
        for number, block in enumerate(find_blocks(page))
        if block.language == "yaml" and wanted(block)
    }


def _find_files(wanted):
    """The files of YAML under examples/ that `wanted` takes, likewise."""
    files = {name_of(file): file.read_text() for file in sorted(REPOSITORY.glob("examples/**/*.yaml"))}
    return {name: text for name, text in files.items() if wanted(name, text)}


# What only Flux, Argo CD and Kustomize read: test_flux.py and test_kustomize.py.
OTHERS = ("examples/gitops/argocd/", "examples/gitops/flux/", "examples/kustomize/")
MANIFESTS = {
    **_find_files(lambda name, text: "apiVersion:" in text and not name.startswith(OTHERS)),
    **_find_blocks(lambda block: "apiVersion:" in block.text and "fragment" not in block.classes),
}
VALUES = {
    **_find_files(lambda name, _: name.endswith("/values.yaml")),
    **_find_blocks(lambda block: "values" in block.classes),
}


@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_manifests_are_taken_as_they_are(trial, text):
    for manifest in _manifests(text):
        stored = _try_apply(trial, manifest)
        if manifest["apiVersion"] == OURS:
            # A field that is dropped or changed would not be what the reader reads.
            assert _is_part(manifest["spec"], stored["spec"]), json.dumps(stored["spec"])


@pytest.mark.parametrize("text", VALUES.values(), ids=VALUES.keys())
def test_values_are_taken_by_the_chart(cluster, text):
    assert render(values=yaml.safe_load(text))


def _try_apply(kubectl, manifest):
    """What would be stored, by a dry run in kubectl's namespace, whichever the manifest names."""
    metadata = {**manifest["metadata"], "namespace": kubectl.namespace}
    if manifest["kind"] in CLUSTER_SCOPED:
        del metadata["namespace"]
    arguments = ("--server-side", "--dry-run=server", "--validate=strict", "--output", "json", "--filename", "-")
    return json.loads(kubectl("apply", *arguments, stdin=json.dumps({**manifest, "metadata": metadata})))


def _is_part(part, whole):
    if isinstance(part, dict):
        return all(name in whole and _is_part(value, whole[name]) for name, value in part.items())
    return part == whole
