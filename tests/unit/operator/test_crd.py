"""The committed CRDs are those of types.py, and structural as Kubernetes wants them."""

from pathlib import Path

import pytest
from pierhead_operator import reference
from pierhead_operator.crd import make_crd, render
from pierhead_operator.types import KINDS, BatchPredictionJob, DeployedModel

REPOSITORY = Path(__file__).parents[3]
CRDS = REPOSITORY / "crds"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_committed_crd_is_current(kind):
    assert (CRDS / f"{kind.PLURAL}.yaml").read_text() == render(kind), "run `make crds` and commit what it writes"


def test_committed_reference_is_current():
    page = REPOSITORY / "docs" / "resources.md"
    assert page.read_text() == reference.render(), "run `make crds` and commit what it writes"


def test_no_crd_is_left_over():
    assert {path.stem for path in CRDS.iterdir()} == {kind.PLURAL for kind in KINDS}


def _schemas(schema):
    yield schema
    for child in schema.get("properties", {}).values():
        yield from _schemas(child)
    for nested in ("items", "additionalProperties"):
        if isinstance(schema.get(nested), dict):
            yield from _schemas(schema[nested])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_schema_is_structural_and_described(kind):
    [version] = make_crd(kind)["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    for schema in _schemas(root):
        open_ = schema.get("x-kubernetes-preserve-unknown-fields")
        assert "type" in schema or schema.get("x-kubernetes-int-or-string") or open_
        # JSON that is nested thousands deep, or as large as etcd takes, would end whoever reads it.
        refused = schema.get("description") == "Vertex AI's; refused here."
        assert not open_ or refused or {"maxProperties", "maxItems"} <= schema.keys()
        assert not {"$ref", "anyOf", "title", "$defs"} & schema.keys()
    for part in ("spec", "status"):
        for name, field in root["properties"][part]["properties"].items():
            assert field.get("description"), f"{kind.KIND}.{part}.{name} has no description"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_only_a_models_own_parameters_are_open(kind):
    """Elsewhere a typo would be nobody's to tell."""

    def find(schema, path):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            yield path
        for name, child in schema.get("properties", {}).items():
            yield from find(child, f"{path}.{name}")
        for nested in ("items", "additionalProperties"):
            if isinstance(schema.get(nested), dict):
                yield from find(schema[nested], f"{path}[]")

    [version] = make_crd(kind)["spec"]["versions"]
    values = {f".spec.modelParameters{'[]' * depth}" for depth in (1, 2, 3)}
    left = {*values, ".spec.unmanagedContainerModel"} if kind is BatchPredictionJob else set()
    assert set(find(version["schema"]["openAPIV3Schema"], "")) == left


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_kind_has_short_name_category_and_status(kind):
    spec = make_crd(kind)["spec"]
    assert spec["names"]["shortNames"] == [kind.SHORT_NAME]
    assert spec["names"]["categories"] == ["pierhead"]
    assert spec["versions"][0]["subresources"] == {"status": {}}


SELECTABLE = {DeployedModel: [".spec.endpoint", ".spec.model"], BatchPredictionJob: [".spec.model"]}


@pytest.mark.parametrize(("kind", "paths"), SELECTABLE.items())
def test_resources_are_found_by_what_they_name(kind, paths):
    [version] = make_crd(kind)["spec"]["versions"]
    assert version["selectableFields"] == [{"jsonPath": path} for path in paths]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_resource_that_nobody_has_looked_at_is_not_taken_for_done(kind):
    [version] = make_crd(kind)["spec"]["versions"]
    default = version["schema"]["openAPIV3Schema"]["properties"]["status"]["default"]
    assert default == {"observedGeneration": -1}
    assert kind.model_fields["status"].annotation.model_validate(default).conditions == []
