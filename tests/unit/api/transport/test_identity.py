"""Whose token a request acts with."""

import asyncio

import pytest
from pierhead_api.errors import UnauthenticatedError, UnavailableError
from pierhead_api.identity import AnonymousToken, Identity

from tests.unit.api.transport.conftest import TOKEN


async def _anonymous():
    return "anonymous-token"


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "])
async def test_bearer_token_is_the_callers(given):
    for identity in (Identity(), Identity(_anonymous)):
        assert await identity.find_token({b"authorization": given.encode()}) == TOKEN


@pytest.mark.parametrize(
    "headers", [{}, {b"authorization": b""}, {b"authorization": b"Basic eDp5"}, {b"authorization": b"Bearer "}]
)
async def test_without_a_token_there_is_no_entry(headers):
    with pytest.raises(UnauthenticatedError, match="Authorization: Bearer"):
        await Identity().find_token(headers)


async def test_anonymous_acts_as_its_service_account_and_wrong_schemes_do_not():
    identity = Identity(_anonymous)
    assert await identity.find_token({}) == "anonymous-token"
    with pytest.raises(UnauthenticatedError):
        await identity.find_token({b"authorization": b"Basic eDp5"})


async def test_token_is_asked_for_once_and_renewed_in_time(api_server, kubernetes):
    now = 0.0
    anonymous = AnonymousToken(kubernetes, "default/laptop", lambda: now)
    api_server.answers = [(201, {"status": {"token": "first"}}), (201, {"status": {"token": "second"}})]
    assert set(await asyncio.gather(*(anonymous.get() for _ in range(5)))) == {"first"}
    now = 2600.0
    assert await anonymous.get() == "first"
    now = 2700.0
    assert await anonymous.get() == "second"
    paths = [(method, path) for method, path, *_ in api_server.requests]
    assert paths == [("POST", "/api/v1/namespaces/default/serviceaccounts/laptop/token")] * 2
    assert {headers["Authorization"] for _, _, _, headers, _ in api_server.requests} == {"Bearer own-token"}


async def test_missing_right_to_the_token_is_the_platforms(api_server, kubernetes):
    api_server.answers = [(403, {"kind": "Status", "message": "forbidden: serviceaccounts/token"})]
    with pytest.raises(UnavailableError, match="serviceaccounts/token"):
        await AnonymousToken(kubernetes, "default/laptop").get()
