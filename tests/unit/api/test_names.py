"""Tables: projects, locations and resource names, and what they mean here."""

import re

import pytest
from pierhead_api.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError
from pierhead_api.names import (
    Place,
    Projects,
    check_id,
    check_new,
    check_new_deployed_model,
    check_version,
    make_id,
    split_version,
)

from tests.unit.api.conftest import PARENT, PLACE

PROJECTS = Projects({"shop": "team-a", "123": "team-a", "bank": "team-b"}, ["local", "us-central1"])


@pytest.mark.parametrize(("project", "namespace"), [("shop", "team-a"), ("123", "team-a"), ("team-c", "team-c")])
def test_project_is_a_namespace(project, namespace):
    assert PROJECTS.find_place(project, "local") == Place(project, "local", namespace)


@pytest.mark.parametrize("project", ["456", "../x", "Shop", "a/b", "", "x" * 64])
def test_other_projects_may_not_be_seen(project):
    with pytest.raises(PermissionDeniedError):
        PROJECTS.find_place(project, "local")


def test_location_must_be_of_the_list():
    with pytest.raises(NotFoundError, match="there is local, us-central1"):
        PROJECTS.find_place("shop", "mars")


def test_resource_names():
    assert PLACE.endpoint("7") == f"{PARENT}/endpoints/7"
    assert PLACE.model("m") == f"{PARENT}/models/m"
    assert PLACE.model("m", "2") == f"{PARENT}/models/m@2"
    assert PLACE.job("9") == f"{PARENT}/batchPredictionJobs/9"


MODELS = {
    "alone": (f"{PARENT}/models/m", ("m", "")),
    "version": (f"{PARENT}/models/m@2", ("m", "2")),
    "alias": (f"{PARENT}/models/m@candidate", ("m", "candidate")),
    "project by number": ("projects/123/locations/us-central1/models/m", ("m", "")),
}


@pytest.mark.parametrize(("resource", "expected"), MODELS.values(), ids=MODELS.keys())
def test_find_model(resource, expected):
    assert PROJECTS.find_model(PLACE, resource, "model") == expected


@pytest.mark.parametrize(
    "resource", ["m", "models/m", "", f"{PARENT}/endpoints/m", "projects/bank/locations/local/models/m"]
)
def test_find_model_names_the_field(resource):
    with pytest.raises(InvalidArgumentError, match=r"^deployedModel\.model: "):
        PROJECTS.find_model(PLACE, resource, "deployedModel.model")


def test_split_version():
    assert split_version("m@default") == ("m", "default")
    assert split_version("m") == ("m", "")


CANNOT_BE = [
    "..",
    "a/b",
    "A",
    "a.b",
    "-a",
    "a-",
    "-",
    "",
    "x" * 64,
    "a\n",
    "a%2Fb",
    "a_b",
    "\u00e9",
    "\u0663",
    "a b",
    "a:b",
]


@pytest.mark.parametrize("name", CANNOT_BE)
def test_what_cannot_be_a_name_is_not_found(name):
    with pytest.raises(NotFoundError):
        check_id(name)
    with pytest.raises(InvalidArgumentError):
        check_new(name, "endpointId")


@pytest.mark.parametrize("name", ["a", "0", "1a", "0" * 63, "x" * 63, "a" + "-" * 61 + "b", "dm-a", "mdl2-a"])
def test_every_name_that_a_manifest_may_have_is_one(name):
    assert check_id(name) == name
    assert PROJECTS.find_model(PLACE, PLACE.model(name, "2"), "model") == (name, "2")


@pytest.mark.parametrize("name", ["a", "photos-1", "1", "1234567890", "x" * 63])
def test_new_ids(name):
    assert check_new(name, "endpointId") == name


@pytest.mark.parametrize("name", ["01", "12345678901", "a-", "-a", "a_b", "A", "x" * 64, "1a"])
def test_new_ids_that_cannot_be(name):
    with pytest.raises(InvalidArgumentError, match=r"^endpointId: must be"):
        check_new(name, "endpointId")


@pytest.mark.parametrize("name", ["0", "a", "01", "12345678901"])
def test_deployed_model_ids_are_digits(name):
    with pytest.raises(InvalidArgumentError, match=r"^deployedModel\.id: "):
        check_new_deployed_model(name)


def test_made_ids_look_like_vertex_ais():
    assert all(re.fullmatch(r"[1-9][0-9]{9}", make_id()) for _ in range(100))


@pytest.mark.parametrize("version", ["1", "v1", "candidate", "goldenOne", "0-1", "v1_2", "V_", f"a{'B' * 126}c"])
def test_name_of_a_version_or_an_alias(version):
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["", "Gol-den", "1 ", "../1", "%31", "1_b", "a-", "a" * 129, "B" * 129])
def test_what_no_version_is_called(version):
    with pytest.raises(NotFoundError):
        check_version(version)
