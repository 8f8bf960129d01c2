"""CRDs take and keep all that those of the last release took."""

import copy
import tomllib

import pytest
from pierhead_operator.crd import make_crd
from pierhead_operator.types import KINDS

from tests.compatibility import compare_schemas, find_breaks, find_failing_rules
from tests.releases import REPOSITORY, find_releases, read_crds, unpack


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The CRDs of the last release, by kind."""
    root = unpack(find_releases()[-1], tmp_path_factory.mktemp("release"))
    return {crd["spec"]["names"]["kind"]: crd for crd in read_crds(root)}


def test_every_released_kind_is_still_there(released):
    assert released.keys() <= {kind.KIND for kind in KINDS}


# What is narrower than in the last release on purpose, and why. The API server takes a stored object with what is refused
# by now, as long as that is not changed, and the operator says what is wrong with it.
_WAS_OPEN = "any content was taken, so that a typo was told by nobody; now what Kubernetes itself takes"
NARROWED = {
    ".spec.versions[]": "runtime is new, and as unchangeable as the fields beside it",
    ".spec.podOverrides.labels": "a worker of a batch job could stand behind a DeployedModel's Service",
    ".spec.podOverrides.annotations": "those of Pierhead's group are Pierhead's",
    ".spec.podOverrides.env": "what runs code or is the Model's to say was known in one spelling alone",
    ".spec.podOverrides.env[]": _WAS_OPEN,
    ".spec.podOverrides.env[].name": _WAS_OPEN,
    ".spec.podOverrides.tolerations[]": _WAS_OPEN,
    ".spec.podOverrides.affinity": _WAS_OPEN,
    ".spec.podOverrides.priorityClassName": "Kubernetes' own priorities would evict the cluster's own pods",
    ".spec.modelParameters": "JSON that was nested thousands deep ended the operator for everybody",
    ".spec.dedicatedResources.machineSpec.resourceClaims": _WAS_OPEN,
    ".spec.dedicatedResources.machineSpec.resourceClaims[]": _WAS_OPEN,
    ".spec.dedicatedResources.machineSpec.resourceClaims[].name": _WAS_OPEN,
}


def _find_paths(released, kind):
    """Where a kind's CRD breaks what the last release promised, each with what it breaks there."""
    breaks = find_breaks(released[kind.KIND], make_crd(kind)) if kind.KIND in released else []
    return [(one.partition(": ")[0], one) for one in breaks]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_crd_breaks_nothing_of_the_last_release(released, kind):
    assert [one for path, one in _find_paths(released, kind) if path not in NARROWED] == []


def test_what_is_narrowed_on_purpose_is_narrower(released):
    assert {path for kind in KINDS for path, _ in _find_paths(released, kind)} == NARROWED.keys()


def _find_schema(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.KIND)
def test_no_rule_fails_of_a_field_that_the_last_release_did_not_ask_for(released, kind):
    assert list(find_failing_rules(_find_schema(released[kind.KIND]), _find_schema(make_crd(kind)))) == []


def test_rule_that_fails_is_found():
    rules = [{"rule": rule} for rule in ("self.a == 1", "has(self.a) && self.a == 1", "self.b == self.c", "self == 1")]
    items = {"properties": {"a": {}, "b": {}, "c": {"default": 1}}, "x-kubernetes-validations": rules}
    old = {"items": {"properties": {"b": {}}, "required": ["b"], "x-kubernetes-preserve-unknown-fields": True}}
    assert list(find_failing_rules(old, {"items": items})) == ["[]: self.a == 1"]


def test_this_version_is_newer_than_the_last_release():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    numbers = [[int(part) for part in one.split(".")] for one in (find_releases()[-1], version)]
    assert numbers[0] < numbers[1], "a release is kept in releases/ when the next version begins"


STRING = {"type": "string"}


def made_of(**properties):
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (made_of(a=STRING), made_of(), [".a: gone, so that it is pruned from what is stored"]),
        (made_of(a=STRING), made_of(a={"type": "integer"}), [".a: type was 'string', is 'integer'"]),
        (made_of(a=STRING), {**made_of(a=STRING), "required": ["a"]}, [": requires a"]),
        (made_of(a=STRING), made_of(a={**STRING, "maxLength": 5}), [".a: maxLength is lower"]),
        (made_of(a=STRING), made_of(a={**STRING, "minLength": 1}), [".a: minLength is higher"]),
        (made_of(a=STRING), made_of(a={**STRING, "enum": ["x"]}), [".a: takes no longer any"]),
        (made_of(a={**STRING, "enum": ["x", "y"]}), made_of(a={**STRING, "enum": ["y"]}), [".a: takes no longer x"]),
        (made_of(a=STRING), made_of(a={**STRING, "default": "x"}), [".a: default was None, is 'x'"]),
        (
            made_of(a={"type": "array", "items": made_of(b=STRING)}),
            made_of(a={"type": "array", "items": made_of()}),
            [".a[].b: gone, so that it is pruned from what is stored"],
        ),
        (
            STRING,
            {**STRING, "x-kubernetes-validations": [{"rule": "self != ''", "message": "must not be empty"}]},
            [": has a new rule: must not be empty"],
        ),
        (made_of(status=made_of()), made_of(status={**made_of(), "default": {}}), []),
        # What takes more breaks nothing.
        (made_of(a={**STRING, "enum": ["x"]}), made_of(a={**STRING, "enum": ["x", "y"]}), []),
        (made_of(a=STRING), made_of(a=STRING, b=STRING), []),
        (made_of(a={**STRING, "maxLength": 5}), made_of(a={**STRING, "maxLength": 6}), []),
    ],
)
def test_what_a_schema_breaks_is_found(old, new, found):
    assert list(compare_schemas(old, new)) == found


def test_what_a_crd_breaks_beside_its_schema_is_found():
    old = make_crd(KINDS[2])
    new = copy.deepcopy(old)
    [version] = new["spec"]["versions"]
    version["subresources"] = {}
    version["selectableFields"] = version["selectableFields"][1:]
    new["spec"]["names"]["shortNames"] = []
    assert find_breaks(old, new) == [
        "spec.names: changed",
        "subresources: changed",
        "selectableFields: lacks .spec.endpoint",
    ]
    version["name"] = "v2"
    assert "version v1: no longer served" in find_breaks(old, new)
