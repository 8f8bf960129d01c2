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
    assert await identity.find_token({b"host": b"localhost:8080"}) == "anonymous-token"
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


LOCAL = {b"host": b"localhost:8080"}


@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        {b"host": b"127.0.0.1"},
        {b"host": b"[::1]:8080"},
        LOCAL | {b"origin": b"http://localhost:3000"},
        LOCAL | {b"content-type": b"application/json; charset=utf-8", b"sec-fetch-site": b"same-origin"},
    ],
)
async def test_anonymous_is_who_is_on_this_machine(headers):
    assert await Identity(_anonymous).find_token(headers) == "anonymous-token"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"host": b"models.example.com"},
        {b"host": b"localhost.example.com"},
        {b"host": b"[x"},
        LOCAL | {b"origin": b"https://evil.example.com"},
        LOCAL | {b"origin": b"null"},
        LOCAL | {b"sec-fetch-site": b"cross-site"},
        LOCAL | {b"content-type": b"text/plain;charset=UTF-8"},
        LOCAL | {b"content-type": b"application/x-www-form-urlencoded"},
    ],
)
async def test_anonymous_is_no_page_of_another_place(headers):
    with pytest.raises(UnauthenticatedError):
        await Identity(_anonymous).find_token(headers)
    assert await Identity(_anonymous).find_token(headers | {b"authorization": b"Bearer t"}) == "t"


@pytest.mark.parametrize("token", ["T 1", "T\t1", "x" * 17_000, "a,b", '"quoted"', "\u00fc"])
async def test_what_can_be_no_token_is_asked_nobody_about(token):
    with pytest.raises(UnauthenticatedError):
        await Identity().find_token({b"authorization": f"Bearer {token}".encode("latin-1")})
