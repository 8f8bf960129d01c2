"""A version's name is one artifact's, also after the version was removed."""

import pytest
from pierhead_operator.status import compute_model_status
from pierhead_operator.types import Model, ModelVersion
from pierhead_operator.versions import (
    MOST_REMEMBERED,
    MOST_RUN,
    explain_version,
    explain_versions,
    find_version,
    make_record,
    remember_run,
    remember_versions,
)

from tests.unit.operator.conftest import NOW, make_model

A = {"name": "1", "artifactUri": "gs://models/photos/1", "digest": "sha256:" + "0" * 64}
# Each of them is another version, whatever it is called.
OTHERS = {
    "another artifact": {**A, "artifactUri": "gs://models/photos/9"},
    "another digest": {**A, "digest": "sha256:" + "1" * 64},
    "no digest": {"name": "1", "artifactUri": A["artifactUri"]},
    "code": {**A, "allowCode": True},
}


def _model(*versions, known=()):
    made = make_model(versions=list(versions), defaultVersion=versions[0]["name"])
    return Model.model_validate({**made, "status": {"versions": list(known)}})


def _version(raw):
    return ModelVersion.model_validate(raw)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_another_one_of_its_name_is_told_with_both(other):
    told = explain_versions(_model(other, known=[A]))
    assert told.startswith("Model photos: version 1 was gs://models/photos/1 of sha256:000")
    assert f"and is {other['artifactUri']}" in told
    assert "a name of its own" in told
    status = compute_model_status(_model(other, known=[A]), None, "", NOW)
    assert [(c.status, c.reason) for c in status.conditions if c.type in ("Ready", "Stalled")] == [
        ("False", "VersionChanged"),
        ("True", "VersionChanged"),
    ]
    assert status.versions == [make_record(_version(A))], "it stays told until somebody acts"


SAME = {
    "as it was": A,
    "with an alias": {**A, "aliases": ["stable"]},
    "with what it had by default": {**A, "allowCode": False},
}


@pytest.mark.parametrize("same", SAME.values(), ids=SAME.keys())
def test_the_same_one_is_taken(same):
    model = _model(same, known=[A])
    assert explain_versions(model) is None
    assert compute_model_status(model, None, "", NOW).versions == model.status.versions


def test_what_was_never_seen_is_taken():
    assert explain_versions(_model(A)) is None


def test_whoever_runs_it_counts_before_what_the_model_remembers():
    """The Model may be another one of that name."""
    other = OTHERS["another artifact"]
    ran = [make_record(_version({**A, "name": "2"})), make_record(_version(A))]
    assert "was gs://models/photos/1 " in explain_version(_model(other, known=[other]), _version(other), ran)
    assert explain_version(_model(A, known=[other]), _version(A), ran) is None
    assert explain_version(_model(A), _version(A), ran[:1]) is None


def _alias(alias, **other):
    """Version 2, called so, too."""
    return {**A, "name": "2", "aliases": [alias], **other}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_alias_that_was_another_artifacts_name_is_told_and_leads_nowhere(other):
    removed = {**other, "name": "blue"}
    model = _model(_alias("blue"), known=[removed, {**A, "name": "2"}])
    assert f"version blue was {other['artifactUri']}" in explain_versions(model)
    assert "now an alias of version 2" in explain_versions(model)
    assert find_version(model, "blue") is None
    assert find_version(model, "2").name == "2", "by its own name it is there"
    assert explain_version(model, find_version(model, "2"), ()) is None


def test_alias_is_an_artifacts_new_name():
    model = _model(_alias("blue"), known=[{**A, "name": "blue"}])
    assert explain_versions(model) is None
    assert find_version(model, "blue").name == "2"


@pytest.mark.parametrize(("name", "found"), [("1", "1"), ("2", "2"), ("stable", "2"), ("3", None)])
def test_version_is_found_by_its_name_or_an_alias(name, found):
    version = find_version(_model(A, _alias("stable")), name)
    assert (version and version.name) == found


def test_removed_one_is_remembered_and_the_first_of_a_name_stays():
    known = remember_versions([], [_version(A), _version({**A, "name": "2"})])
    known = remember_versions(known, [_version({**A, "name": "2"})])
    assert [record.name for record in known] == ["1", "2"]
    assert remember_versions(known, [_version(OTHERS["another artifact"])]) == known


def test_memory_is_bounded_and_keeps_what_is_there():
    names = [str(number) for number in range(MOST_REMEMBERED + 40)]
    known = []
    for name in names[2:]:
        known = remember_versions(known, [_version({**A, "name": one}) for one in ("0", "1", name)])
        assert remember_versions(known, [_version({**A, "name": one}) for one in ("0", "1", name)]) == known
    assert [record.name for record in known] == ["0", "1", *names[42:]]
    assert len(known) == MOST_REMEMBERED


def test_what_ran_is_remembered_with_the_present_one_last():
    first, second = _version(A), _version({**A, "name": "2"})
    ran = remember_run(remember_run([], first), second)
    assert ran == [make_record(first), make_record(second)]
    assert remember_run(ran, second) == ran
    assert remember_run(ran, _version(OTHERS["another artifact"])) == [make_record(second), make_record(first)]
    many = [make_record(_version({**A, "name": f"v{number}"})) for number in range(MOST_RUN)]
    assert remember_run(many, first) == [*many[1:], make_record(first)]
