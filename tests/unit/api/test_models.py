"""Tables: Vertex AI's Model, which is one version, from and to a Model of ours, which has them all."""

import json

import pytest
from pierhead_api import objects
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from pierhead_api.models import (
    ModelBody,
    add_version,
    compute_etag,
    find_deployment_timeout,
    find_users,
    make_model,
    merge_aliases,
    patch_model,
    remove_version,
    resolve_version,
    to_model,
)
from pierhead_api.wire import parse
from pierhead_operator.types import Model

from tests.unit.api import conftest
from tests.unit.api.conftest import MADE, PARENT, PLACE, make_deployed_model, make_job, merge

NOW, LATER = "2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z"
BODY = {"displayName": "Photos", "artifactUri": "gs://models/photos/1"}


def _make(body):
    manifest = make_model(parse(ModelBody, BODY | body), PLACE, "photos", NOW)
    return merge(manifest, {"metadata": {"creationTimestamp": MADE, "uid": "u"}})


def _add(manifest, body, now=LATER):
    patch, name = add_version(parse(ModelBody, {"artifactUri": "gs://models/photos/2"} | body), manifest, now)
    return merge(manifest, patch), name


FIRST = {
    "plain": ({}, {}),
    "description": ({"description": "d"}, {"description": "d"}),
    "the first is the default anyway": ({"versionAliases": ["default"]}, {}),
    "a prebuilt image": (
        {"containerSpec": {"imageUri": "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"}},
        {},
    ),
    "an older prebuilt image": ({"container_spec": {"image_uri": "gcr.io/cloud-aiplatform/prediction/x:latest"}}, {}),
}


@pytest.mark.parametrize(("body", "spec"), FIRST.values(), ids=FIRST.keys())
def test_make_model(body, spec):
    version = {"name": "1", "artifactUri": "gs://models/photos/1"}
    assert _make(body)["spec"] == {"displayName": "Photos", "defaultVersion": "1", "versions": [version], **spec}


def test_aliases_of_the_first_version():
    [version] = _make({"versionAliases": ["default", "golden"]})["spec"]["versions"]
    assert version["aliases"] == ["golden"]


REFUSED = {
    "no name": ({"displayName": ""}, "model.displayName: must be set"),
    "no artifact": ({"artifactUri": ""}, "model.artifactUri: must be set"),
    "own image": ({"containerSpec": {"imageUri": "gcr.io/me/mine"}}, "containerSpec.imageUri: must be one of Vertex"),
    "looks prebuilt": (
        {"containerSpec": {"imageUri": "evil/us-docker.pkg.dev/vertex-ai/prediction/x"}},
        "containerSpec.",
    ),
    "command": ({"containerSpec": {"command": ["sh"]}}, "command: is not supported: the model runs in Pierhead's"),
    "environment": (
        {"containerSpec": {"env": [{"name": "A", "value": "b"}]}},
        "containerSpec.env: A is not supported, PIERHEAD_ALLOW_CODE, ",
    ),
    "neither yes nor no": (
        {"containerSpec": {"env": [{"name": "PIERHEAD_ALLOW_CODE", "value": "yes"}]}},
        "containerSpec.env: PIERHEAD_ALLOW_CODE must be true or false",
    ),
    "no time": ({"containerSpec": {"deploymentTimeout": "soon"}}, "containerSpec.deploymentTimeout: must be seconds"),
    "too much time": (
        {"containerSpec": {"deploymentTimeout": "7201s"}},
        "containerSpec.deploymentTimeout: must be 1s to 7200s",
    ),
    "alias": ({"versionAliases": ["A"]}, "versionAliases: 'A' must be"),
    "encryption": ({"encryptionSpec": {"a": "b"}}, "encryptionSpec: is not supported"),
    "too much": ({"metadata": "x" * 70000}, "last, versions together must be"),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_make_model_names_what_is_not_supported(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        _make(body)
    assert str(caught.value).startswith(message)


def test_variables_say_what_vertex_ai_has_no_field_for():
    digest = f"sha256:{'a' * 64}"
    given = {"PIERHEAD_ALLOW_CODE": "true", "PIERHEAD_ARTIFACT_DIGEST": digest, "PIERHEAD_RUNTIME": "OpenVINO"}
    sent = [{"name": name, "value": value} for name, value in given.items()]
    manifest = _make({"containerSpec": {"env": sent}})
    [version] = manifest["spec"]["versions"]
    assert (version["allowCode"], version["digest"], version["runtime"]) == (True, digest, "OpenVINO")
    assert to_model(manifest, "", [], PLACE)["containerSpec"]["env"] == sent
    [version] = _make({"containerSpec": {"env": [{"name": "PIERHEAD_ALLOW_CODE", "value": "false"}]}})["spec"][
        "versions"
    ]
    assert set(version) == {"name", "artifactUri"}


@pytest.mark.parametrize(
    ("kept", "expected"),
    [("90s", 90), ("1.5s", 1), ("", 1800), (None, 1800), ("broken by hand", 1800), (["90s"], 1800)],
)
def test_find_deployment_timeout(kept, expected):
    annotation = json.dumps({"versions": {"1": {"containerSpec": {"deploymentTimeout": kept}}}})
    manifest = merge(conftest.make_model(), {"metadata": {"annotations": {objects.ANNOTATION_KEPT: annotation}}})
    assert find_deployment_timeout(manifest, "1") == expected
    assert find_deployment_timeout(manifest, "2") == 1800


def test_to_model():
    sent = {
        "versionDescription": "first",
        "containerSpec": {"image_uri": "us-docker.pkg.dev/vertex-ai/prediction/x:1", "predictRoute": "/predict"},
        "explanationSpec": {"parameters": {"topK": 1}},
        "labels": {"team": "a"},
    }
    manifest = _make(sent)
    assert to_model(manifest, "", [make_deployed_model("11"), make_deployed_model("12", model="other")], PLACE) == {
        "name": f"{PARENT}/models/photos",
        "displayName": "Photos",
        "labels": {"team": "a"},
        "etag": compute_etag(manifest, "1"),
        "createTime": MADE,
        "updateTime": MADE,
        "artifactUri": "gs://models/photos/1",
        "versionId": "1",
        "versionAliases": ["default"],
        "versionDescription": "first",
        "versionCreateTime": NOW,
        "versionUpdateTime": NOW,
        "containerSpec": {"imageUri": "us-docker.pkg.dev/vertex-ai/prediction/x:1", "predictRoute": "/predict"},
        "explanationSpec": {"parameters": {"topK": 1}},
        "deployedModels": [{"endpoint": f"{PARENT}/endpoints/7", "deployedModelId": "11"}],
        "supportedDeploymentResourcesTypes": ["DEDICATED_RESOURCES", "AUTOMATIC_RESOURCES"],
        "supportedInputStorageFormats": ["jsonl", "csv", "file-list"],
        "supportedOutputStorageFormats": ["jsonl", "csv", "parquet"],
    }


@pytest.mark.parametrize("kept", ["no JSON", "[]", '{"versions": []}', '{"versions": {"1": 2}}', '{"last": "x"}'])
def test_model_of_a_manifest_has_what_clients_need(kept):
    manifest = objects.annotate(conftest.make_model(), {objects.ANNOTATION_KEPT: kept})
    answer = to_model(manifest, "2", [], PLACE)
    assert (answer["versionId"], answer["versionAliases"]) == ("2", ["candidate"])
    assert answer["versionCreateTime"] == MADE


VERSIONS = {"": "1", "default": "1", "1": "1", "2": "2", "candidate": "2"}


@pytest.mark.parametrize(("asked", "expected"), VERSIONS.items())
def test_resolve_version(asked, expected):
    assert resolve_version(Model.model_validate(conftest.make_model()), asked).name == expected


def test_resolve_version_names_those_that_there_are():
    with pytest.raises(NotFoundError, match="no version or alias 3; it has 1, 2"):
        resolve_version(Model.model_validate(conftest.make_model()), "3")


def test_alias_that_was_another_versions_name_is_no_version():
    model = conftest.make_model()
    model["status"] = {"versions": [{"name": "candidate", "artifactUri": "gs://models/other"}]}
    with pytest.raises(NotFoundError, match="no version or alias candidate"):
        resolve_version(Model.model_validate(model), "candidate")


def test_further_version():
    manifest, name = _add(_make({"versionAliases": ["golden"]}), {"displayName": "B", "versionAliases": ["golden"]})
    assert name == "2"
    assert manifest["spec"]["defaultVersion"] == "1"
    assert manifest["spec"]["versions"] == [
        {"name": "1", "artifactUri": "gs://models/photos/1"},
        {"name": "2", "aliases": ["golden"], "artifactUri": "gs://models/photos/2"},
    ]
    one, two = (to_model(manifest, version, [], PLACE) for version in ("1", "2"))
    assert (one["displayName"], two["displayName"]) == ("Photos", "B")
    assert (one["versionCreateTime"], two["versionCreateTime"]) == (NOW, LATER)


@pytest.mark.parametrize("body", [{"versionAliases": ["default"]}, {"isDefaultVersion": True}])
def test_further_version_becomes_the_default(body):
    manifest, name = _add(_make({}), body)
    assert manifest["spec"]["defaultVersion"] == name == "2"


def test_further_version_adds_labels():
    manifest, _ = _add(_make({"labels": {"a": "1", "b": "1"}}), {"labels": {"b": "2"}})
    assert objects.read_labels(manifest) == {"a": "1", "b": "2"}


def test_number_of_a_version_is_not_given_again():
    manifest, _ = _add(_make({}), {})
    manifest = merge(manifest, remove_version(manifest, "2"))
    assert [version["name"] for version in manifest["spec"]["versions"]] == ["1"]
    assert _add(manifest, {})[1] == "3"


def test_number_follows_those_of_a_manifest():
    manifest = conftest.make_model()
    manifest["spec"]["versions"].append({"name": "v9", "artifactUri": "gs://models/photos/9"})
    assert _add(manifest, {})[1] == "3"


def test_number_of_a_version_that_others_removed_is_not_given_again():
    """The operator refuses another artifact of that name."""
    manifest = conftest.make_model()
    manifest["status"] = {
        "versions": [{"name": "7", "artifactUri": "gs://m/7"}, {"name": "v9", "artifactUri": "gs://m"}]
    }
    assert _add(manifest, {})[1] == "8"


def test_default_or_only_version_stays():
    with pytest.raises(FailedPreconditionError, match="1 is the default version"):
        remove_version(conftest.make_model(), "1")
    with pytest.raises(FailedPreconditionError, match="1 is the only version"):
        remove_version(_make({}), "1")


ALIASES = {
    "added": ("1", ["golden"], "1", {"1": ["golden"], "2": ["candidate"]}),
    "moved": ("1", ["candidate"], "1", {"1": ["candidate"], "2": []}),
    "removed": ("2", ["-candidate"], "1", {"1": [], "2": []}),
    "removed from one that has it not": ("1", ["-candidate"], "1", {"1": [], "2": ["candidate"]}),
    "default": ("2", ["default"], "2", {"1": [], "2": ["candidate"]}),
    "both cancel out": ("1", ["golden", "-golden"], "1", {"1": [], "2": ["candidate"]}),
    "again": ("2", ["candidate"], "1", {"1": [], "2": ["candidate"]}),
}


@pytest.mark.parametrize(("version", "aliases", "default", "expected"), ALIASES.values(), ids=ALIASES.keys())
def test_merge_aliases(version, aliases, default, expected):
    manifest = merge(conftest.make_model(), merge_aliases(conftest.make_model(), version, aliases))
    assert manifest["spec"]["defaultVersion"] == default
    assert {one["name"]: one.get("aliases", []) for one in manifest["spec"]["versions"]} == expected


@pytest.mark.parametrize("aliases", [["-default"], ["1x"], [""]])
def test_aliases_that_cannot_be(aliases):
    with pytest.raises(InvalidArgumentError, match=r"^versionAliases: "):
        merge_aliases(conftest.make_model(), "1", aliases)


PATCHES = {
    "of the model": ("1", {"displayName": "C"}, {"display_name"}, ("C", "C")),
    "of a version that has its own": ("2", {"displayName": "C"}, {"display_name"}, ("Photos", "C")),
}


@pytest.mark.parametrize(("version", "body", "fields", "expected"), PATCHES.values(), ids=PATCHES.keys())
def test_patch_model(version, body, fields, expected):
    manifest, _ = _add(_make({}), {"displayName": "B"} if version == "2" else {})
    manifest = merge(manifest, patch_model(parse(ModelBody, body), manifest, version, fields, LATER))
    assert tuple(to_model(manifest, one, [], PLACE)["displayName"] for one in ("1", "2")) == expected


def test_patch_model_writes_what_is_asked_for_alone():
    manifest = _make({"description": "d", "labels": {"a": "b"}, "versionDescription": "v"})
    body = parse(ModelBody, {"displayName": "C", "description": "", "labels": {"c": "d"}, "versionDescription": "w"})
    fields = {"description", "labels", "version_description"}
    answer = to_model(merge(manifest, patch_model(body, manifest, "1", fields, LATER)), "1", [], PLACE)
    assert (answer["displayName"], answer["labels"], answer["versionDescription"]) == ("Photos", {"c": "d"}, "w")
    assert "description" not in answer
    assert (answer["versionCreateTime"], answer["versionUpdateTime"]) == (NOW, LATER)


def test_find_users():
    pinned = merge(
        make_deployed_model("12", model="photos"), {"spec": {"modelVersion": None}, "status": {"modelVersion": "2"}}
    )
    users = [make_deployed_model("11"), pinned, make_deployed_model("13", model="other"), make_job("21")]
    assert find_users(users, "photos") == ["11", "12", "21"]
    assert find_users(users, "photos", "1") == ["11", "21"]
    assert find_users(users, "photos", "2") == ["12"]


ETAGS = {
    "another version": (lambda manifest: _add(manifest, {})[0], True),
    "an alias of another": (lambda manifest: merge(manifest, merge_aliases(manifest, "2", ["golden"])), True),
    "its alias": (lambda manifest: merge(manifest, merge_aliases(manifest, "1", ["golden"])), False),
    "the model's name": (lambda manifest: merge(manifest, {"spec": {"displayName": "C"}}), False),
}


@pytest.mark.parametrize(("change", "same"), ETAGS.values(), ids=ETAGS.keys())
def test_etag_is_a_versions(change, same):
    before, _ = _add(_make({}), {})
    assert (compute_etag(change(before), "1") == compute_etag(before, "1")) is same


def test_annotation_speaks_for_no_fact_of_a_version():
    plain = conftest.make_model()
    facts = to_model(plain, "1", [], PLACE)
    lies = {
        "artifactUri": "gs://trusted",
        "deployedModels": [{"endpoint": "e"}],
        "encryptionSpec": {},
        "versionId": "9",
    }
    kept = {"versions": {"1": {**lies, "explanationSpec": {"a": 1}}}}
    answer = to_model(objects.annotate(plain, objects.annotate_kept(kept)), "1", [], PLACE)
    assert answer == {**facts, "explanationSpec": {"a": 1}, "etag": answer["etag"]}


NUMBERS = {
    "63 nines": (["9" * 63], {}, "3"),
    "a date": (["20261122"], {}, "20261123"),
    "the highest that counts": (["9" * 18], {}, str(10**18)),
    "those after it": (["9" * 18, str(10**18)], {}, str(10**18 + 1)),
    "given last": ([], {"last": 7}, "8"),
    "too high a last": ([], {"last": 10**70}, "3"),
    "below zero": ([], {"last": -7}, "3"),
}


@pytest.mark.parametrize(("names", "kept", "expected"), NUMBERS.values(), ids=NUMBERS.keys())
def test_number_of_a_further_version_can_be_one(names, kept, expected):
    manifest = objects.annotate(conftest.make_model(), objects.annotate_kept(kept))
    manifest["spec"]["versions"] += [{"name": name, "artifactUri": f"gs://models/{name}"} for name in names]
    manifest, name = _add(manifest, {})
    assert name == expected
    assert _add(manifest, {})[1] == str(int(expected) + 1)


def test_number_above_those_that_count_is_no_obstacle_to_a_removal():
    manifest = conftest.make_model()
    manifest["spec"]["versions"].append({"name": "9" * 63, "artifactUri": "gs://models/9"})
    manifest = merge(manifest, remove_version(manifest, "9" * 63))
    assert _add(manifest, {})[1] == "3"
