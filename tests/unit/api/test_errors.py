"""Tables: an error -> Google's body."""

import json

import pytest
from pierhead_api import errors

BODIES = {
    "plain": (errors.NotFoundError("there is no x"), 404, "NOT_FOUND", "there is no x", None),
    "aborted": (errors.AbortedError("try again"), 409, "ABORTED", "try again", None),
    "etag": (errors.AbortedError("changed"), 409, "ABORTED", "changed", None),
    "field": (
        errors.InvalidArgumentError("must be set", "displayName"),
        400,
        "INVALID_ARGUMENT",
        "displayName: must be set",
        [
            {
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{"field": "displayName", "description": "must be set"}],
            }
        ],
    ),
    "no field": (errors.InvalidArgumentError("no JSON"), 400, "INVALID_ARGUMENT", "no JSON", None),
}


@pytest.mark.parametrize(("error", "code", "status", "message", "details"), BODIES.values(), ids=BODIES.keys())
def test_to_body(error, code, status, message, details):
    expected = {"code": code, "message": message, "status": status}
    assert error.to_body() == {"error": {**expected, "details": details} if details else expected}


LONG = "x" * 1_000_000
REPEATING = {
    "message": errors.NotFoundError(f"there is no {LONG}"),
    "field": errors.InvalidArgumentError("must be set", LONG),
    "description": errors.InvalidArgumentError(f"{LONG} is not supported", "field"),
    "later": errors.UnavailableError(LONG),
}


@pytest.mark.parametrize("error", REPEATING.values(), ids=REPEATING.keys())
def test_message_repeats_little_of_what_is_long(error):
    assert len(json.dumps(error.to_body())) < 20_000


def test_long_message_has_its_beginning_and_its_end():
    message = str(errors.InvalidArgumentError(f"{LONG} is not supported: leave it out", "field"))
    assert message.startswith("field: xxx")
    assert message.endswith("xxx is not supported: leave it out")
