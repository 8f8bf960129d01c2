"""Names that are made of names, whatever those are."""

import hashlib
import itertools
import re

import pytest
from pierhead_operator import names

# What Kubernetes takes: of Services, which are the strictest, of label values, and of resources of ours (the CRDs' rule).
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

# The longest that is not cut is of 60 characters for most kinds, of 55 for a job.
_SAME = "s" * 55
HOSTILE = (
    "a",
    "0",
    "1234567890",
    "0" * 63,
    "x" * 63,
    *(letter * length for letter in "yz" for length in (54, 55, 56, 58, 59, 60, 61, 62)),
    *(f"{_SAME}{end}" for end in ("", "1", "2", "-1", "-2", "12345678", "12345679", "-1234567")),
    "a" + "-" * 61 + "b",  # cut to a single letter
    "a" + "-" * 61 + "c",
    "a" * 50 + "-" * 12 + "b",
    *(
        f"{prefix}{name}"
        for prefix in ("dm-", "ep-", "mdl-", "mdl2-", "bpj-", "2-", "1-2-")
        for name in ("a", "x" * 51)
    ),
    "a-999",
)
DERIVED = {
    "server": names.server,
    "route": names.route,
    **{f"model_route {part}": lambda name, part=part: names.model_route(name, part) for part in (1, 2, 3, 12, 22)},
    "batch": names.batch,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_name_is_one_that_a_resource_may_have(name):
    assert RESOURCE.fullmatch(name)
    assert len(name) <= names.MAX_NAME


@pytest.mark.parametrize("derive", DERIVED.values(), ids=DERIVED)
@pytest.mark.parametrize("name", HOSTILE)
def test_derived_name_is_valid_wherever_it_stands(derive, name):
    derived = derive(name)
    assert DNS_1035.fullmatch(derived)
    assert LABEL_VALUE.fullmatch(derived), "a Job's name is a label of its pods"
    assert len(derived) <= names.MAX_NAME


@pytest.mark.parametrize("name", HOSTILE)
def test_name_itself_is_a_label_value(name):
    assert LABEL_VALUE.fullmatch(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_hosts_of_a_jobs_pods_are_valid(name):
    assert len(f"{names.batch(name)}-999") <= names.MAX_NAME


def test_derived_names_collide_with_nobodys():
    """Of whatever kind they are: a Service of an Endpoint is none of a DeployedModel, part 2 of a Model no other one."""
    derived = {(kind, name): derive(name) for kind, derive in DERIVED.items() for name in HOSTILE}
    assert len(set(derived.values())) == len(derived)


def test_only_a_name_made_for_it_meets_a_shortened_one():
    long = "x" * 63
    digest = hashlib.sha256(f"dm-{long}".encode()).hexdigest()[:8]
    assert names.server("x" * 51 + f"-{digest}") == names.server(long), "NotOwned says so"


def test_names_that_fit_are_as_they_ever_were():
    """Another name of a child would be another child: another pod, at an upgrade."""
    assert [derive("photos") for derive in DERIVED.values()] == [
        "dm-photos",
        "ep-photos",
        "mdl-photos",
        "mdl2-photos",
        "mdl3-photos",
        "mdl12-photos",
        "mdl22-photos",
        "bpj-photos",
    ]
    assert names.server("x" * 60) == "dm-" + "x" * 60
    assert names.server("x" * 63) == "dm-" + "x" * 51 + "-6b1debd9"


CLAIMS = (
    "data",
    "a" * 59,
    "a" * 60,
    "a" * 61,
    "my.data",
    "my-data",
    "my.da.ta",
    "0.1",
    "b" * 250 + ".b",
    "c." * 126 + "c",
)


@pytest.mark.parametrize("claim", CLAIMS)
def test_volume_of_a_claim_is_valid(claim):
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", names.volume(claim))
    assert len(names.volume(claim)) <= names.MAX_NAME


def test_volumes_of_claims_collide_with_nobodys():
    assert len({names.volume(claim) for claim in CLAIMS}) == len(CLAIMS)
    assert [names.volume(claim) for claim in ("data", "a" * 59)] == ["pvc-data", "pvc-" + "a" * 59], "as they ever were"


OF_AI_PLATFORM = {
    "photos": "photos",
    "my_model": "my--model",
    "v1_2": "v1--2",
    "Census": "census---1",
    "MyModel_v2": "mymodel--v2---5",
    "v1_": "v1-----0",
    "V1_": "v1-----1",
    "a__b": "a----b---0",
    "a" * 128: "a" * 128,
}


@pytest.mark.parametrize(("told", "name"), OF_AI_PLATFORM.items())
def test_name_of_ai_platform(told, name):
    assert names.of_ai_platform(told) == name
    assert names.ai_platform(name) == told


def test_no_two_names_of_ai_platform_are_one():
    letters = (letters for length in range(1, 7) for letters in itertools.product("aB_0", repeat=length))
    told = [name for name in map("".join, letters) if names.AI_PLATFORM_NAME.fullmatch(name)]
    assert len(told) > 2000
    assert all(RESOURCE.fullmatch(names.of_ai_platform(name)) for name in told)
    assert [names.ai_platform(names.of_ai_platform(name)) for name in told] == told


def test_every_resource_has_a_name_of_its_own_for_ai_platform():
    letters = (letters for length in range(1, 9) for letters in itertools.product("a1-", repeat=length))
    there = [name for name in map("".join, letters) if RESOURCE.fullmatch(name)]
    assert [names.of_ai_platform(names.ai_platform(name)) for name in there] == there
    usual = [name for name in there if "--" not in name]
    assert [names.ai_platform(name) for name in usual] == usual, "they are as they ever were"


@pytest.mark.parametrize("name", ["a---b", "a---0", "a---01", "a---3", "1--a", "a-b--c", "a1---2", *HOSTILE])
def test_resource_that_ai_platform_made_not_is_called_as_it_is(name):
    assert names.ai_platform(name) == name
    assert names.of_ai_platform(name) == name
