"""Tables: a filter -> what it asks for."""

import fnmatch

import pytest
from pierhead_api.errors import InvalidArgumentError
from pierhead_api.filters import parse_filter

ANSWERS = {
    "a": {
        "name": "x/endpoints/1",
        "displayName": "photos",
        "labels": {"team": "a"},
        "createTime": "2026-01-01T00:00:00Z",
    },
    "b": {
        "name": "x/endpoints/2",
        "displayName": "my job",
        "labels": {"team": "b", "x": ""},
        "state": "JOB_STATE_RUNNING",
    },
    "c": {
        "name": "x/endpoints/3",
        "displayName": "AND",
        "state": "JOB_STATE_FAILED",
        "createTime": "2026-03-01T00:00:00Z",
    },
}
FIELDS = ("displayName", "state", "createTime", "endpoint", "done")
FILTERS = {
    "": "abc",
    "  ": "abc",
    'display_name="photos"': "a",
    "display_name=photos": "a",
    "displayName=photos": "a",
    "displayName = 'photos'": "a",
    'displayName="my job"': "b",
    'displayName="AND"': "c",
    'display_name!="photos"': "bc",
    "labels.team=a": "a",
    'labels.team="b"': "b",
    'labels."team"=b': "b",
    "labels.team!=a": "bc",
    "labels.team:*": "ab",
    "labels:team": "ab",
    "labels.x:*": "b",
    'display_name="photos" AND labels.team=a': "a",
    'display_name="photos" labels.team=b': "",
    'state="JOB_STATE_RUNNING"': "b",
    "state=3": "b",
    'state!="JOB_STATE_FAILED" OR display_name="AND"': "abc",
    "NOT display_name=photos": "bc",
    "NOT (display_name=photos OR state=JOB_STATE_FAILED)": "b",
    "labels.team:* AND display_name=photos OR state=JOB_STATE_RUNNING": "ab",
    'display_name:"my*"': "b",
    'display_name:"*job"': "b",
    'display_name:"m*y*o*b"': "b",
    'display_name:"photos*photos"': "",
    'display_name:"ph*ot*tos"': "",
    'display_name:"my job"': "b",
    'display_name:"my?job"': "",
    'display_name:"**"': "abc",
    'create_time>="2026-02-01T00:00:00Z"': "c",
    'createTime="2026-01-01T00:00:00.000Z"': "a",
    'createTime<="2026-01-01T02:00:00+02:00"': "a",
    'createTime<"2026-02-01T00:00:00Z" AND createTime>"2025-01-01T00:00:00Z"': "a",
    'createTime:"2026-01-01T00:00:00.0Z"': "a",
    "createTime:2026-03*": "c",
    "createTime:*": "ac",
    "state:*": "bc",
    'display_name="fotos"': "",
    "NOT createTime:*": "b",
    "endpoint=2": "b",
    "done=false": "abc",
}


@pytest.mark.parametrize(("text", "expected"), FILTERS.items())
def test_filter(text, expected):
    wanted = parse_filter(text, FIELDS)
    assert "".join(name for name, answer in ANSWERS.items() if wanted(answer)) == expected


def test_pattern_is_not_remembered():
    """Python's own compiled patterns are, 32768 of any length."""
    known = fnmatch._compile_pattern.cache_info().currsize
    assert parse_filter('display_name:"no*body*sent*this"', FIELDS)(ANSWERS["a"]) is False
    assert fnmatch._compile_pattern.cache_info().currsize == known


@pytest.mark.parametrize(
    "text",
    [
        "display_name",
        "display_name=",
        "=x",
        "foo=x",
        "display_name.x=y",
        "labels=x",
        "labels.a<b",
        '"display_name=x',
        "(display_name=x",
        "display_name=x)",
        "display_name=x AND",
        "NOT",
        "(" * 1000,
        "labels.",
        "OR",
        "create_time>yesterday",
    ],
)
def test_filter_that_is_none_is_refused(text):
    with pytest.raises(InvalidArgumentError, match=r"^filter: "):
        parse_filter(text, FIELDS)
