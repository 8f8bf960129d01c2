"""Whose token it is, and what they may: with the caller's own words, or by a review."""

import base64
import json

import pytest
from pierhead_api.access import Asked
from pierhead_api.errors import UnauthenticatedError, UnavailableError
from pierhead_api.reviews import Reviews, read_audiences

from tests.unit.api.transport.conftest import TOKEN

ASKED = Asked("endpoints", "team-a", "photos")
OWNER = {"username": "alice", "uid": "1", "groups": ["a", "b"], "extra": {"scopes": ["x"]}, "more": 1}
ATTRIBUTES = {"group": "pierhead.dev", "verb": "predict", "resource": "endpoints", "namespace": "team-a"}


def _make_token(claims):
    parts = (json.dumps(part).encode() for part in ({"alg": "RS256"}, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2lnbmF0dXJl"])


BOUND = _make_token({"aud": ["pierhead"], "sub": "x"})


@pytest.fixture
def reviews(kubernetes):
    return Reviews(kubernetes, "pierhead")


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (BOUND, ["pierhead"]),
        (_make_token({"aud": "pierhead"}), ["pierhead"]),
        (_make_token({"aud": ["x", 1, None, "y"]}), ["x", "y"]),
        (_make_token({"aud": {"a": "b"}}), []),
        (_make_token({"aud": 7}), []),
        (_make_token({}), []),
        (_make_token(["aud"]), []),
        (TOKEN, []),
        ("a.b.c", []),
        ("..", []),
        ("a.====.c", []),
        ("", []),
    ],
)
def test_read_audiences(token, expected):
    assert read_audiences(token) == expected


@pytest.mark.parametrize("token", [TOKEN, _make_token({"aud": ["https://kubernetes.default.svc"]})])
@pytest.mark.parametrize("audience", ["pierhead", ""])
async def test_callers_own_token_asks_for_itself(api_server, kubernetes, token, audience):
    api_server.answers = [(201, {"status": {"allowed": True}})]
    assert await Reviews(kubernetes, audience).may_predict(token, ASKED)
    [(_, path, _, headers, body)] = api_server.requests
    assert path.endswith("/selfsubjectaccessreviews")
    assert headers["Authorization"] == f"Bearer {token}"
    assert body["spec"]["resourceAttributes"] == {**ATTRIBUTES, "name": "photos"}


@pytest.mark.parametrize("allowed", [True, False])
async def test_token_of_our_audience_is_reviewed(api_server, reviews, allowed):
    known = {"authenticated": True, "audiences": ["pierhead"], "user": OWNER}
    api_server.answers = [(201, {"status": known}), (201, {"status": {"allowed": allowed}})]
    assert await reviews.may_predict(BOUND, ASKED) is allowed
    (_, first, _, headers, asked), (_, second, _, _, wanted) = api_server.requests
    assert (first.rsplit("/", 1)[1], second.rsplit("/", 1)[1]) == ("tokenreviews", "subjectaccessreviews")
    assert headers["Authorization"] == "Bearer own-token"
    assert asked["spec"] == {"token": BOUND, "audiences": ["pierhead"]}
    assert wanted["spec"] == {
        "user": "alice",
        "uid": "1",
        "groups": ["a", "b"],
        "extra": {"scopes": ["x"]},
        "resourceAttributes": {**ATTRIBUTES, "name": "photos"},
    }


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False, "error": "expired"},
        {},
        {"authenticated": True, "user": OWNER},
        {"authenticated": True, "audiences": ["other"], "user": OWNER},
    ],
)
async def test_token_that_is_nobodys_is_refused(api_server, reviews, status):
    api_server.answers = [(201, {"status": status})]
    with pytest.raises(UnauthenticatedError):
        await reviews.may_predict(BOUND, ASKED)
    assert len(api_server.requests) == 1


async def test_missing_right_to_review_is_the_platforms(api_server, reviews):
    api_server.answers = [(403, {"kind": "Status", "message": "forbidden: tokenreviews"})]
    with pytest.raises(UnavailableError, match="tokenreviews"):
        await reviews.may_predict(BOUND, ASKED)


async def test_token_of_our_audience_manages_nothing(api_server, reviews):
    with pytest.raises(UnauthenticatedError, match="is for predictions"):
        await reviews.find_user(BOUND)
    assert api_server.requests == []
