"""Connections to the API server, and what its answers mean."""

import json

import pytest
from kubernetes.aio.client import Configuration
from pierhead_api import errors
from pierhead_api.kubernetes_api import Call, check_name, make_error, make_nobodys

STATUS = {"kind": "Status", "apiVersion": "v1"}
INVALID = {
    **STATUS,
    "message": 'Endpoint.pierhead.dev "photos" is invalid: spec.trafficSplit: Invalid value: must sum to 100',
    "reason": "Invalid",
    "details": {
        "causes": [
            {"field": "spec.trafficSplit", "message": "Invalid value: must sum to 100"},
            {"field": "spec.trafficSplit", "message": "Invalid value: must sum to 100"},
            {"field": "metadata.labels", "message": "Invalid value: a b"},
        ]
    },
}


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {**STATUS, "message": "unknown field"}, errors.InvalidArgumentError, "unknown field"),
        (401, {**STATUS, "message": "Unauthorized"}, errors.UnauthenticatedError, "does not take this token"),
        (403, {**STATUS, "message": "forbidden: cannot get"}, errors.PermissionDeniedError, "cannot get"),
        (403, {**STATUS, "message": "forbidden: exceeded quota: q"}, errors.ResourceExhaustedError, "quota"),
        (404, {**STATUS, "message": 'endpoints "x" not found'}, errors.NotFoundError, "not found"),
        (409, {**STATUS, "message": "there", "reason": "AlreadyExists"}, errors.AlreadyExistsError, "there"),
        (409, {**STATUS, "message": "changed", "reason": "Conflict"}, errors.AbortedError, "changed"),
        (410, {**STATUS, "message": "too old", "reason": "Expired"}, errors.ExpiredError, "too old"),
        (413, {**STATUS, "message": "too large"}, errors.InvalidArgumentError, "too large"),
        (422, INVALID, errors.InvalidArgumentError, "spec.trafficSplit: Invalid value: must sum to 100; metadata.la"),
        (422, {**STATUS, "message": "no causes"}, errors.InvalidArgumentError, "no causes"),
        (429, {**STATUS, "message": "slower"}, errors.ResourceExhaustedError, "slower"),
        (500, {**STATUS, "message": "etcd"}, errors.UnavailableError, "etcd"),
        (503, "<html>a proxy's page", errors.UnavailableError, "a proxy's page"),
        (502, b"", errors.UnavailableError, "answered 502"),
    ],
)
def test_answer_says_who_must_act(status, body, kind, message):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = make_error(status, data, {})
    assert type(error) is kind
    assert message in str(error)


@pytest.mark.parametrize("metadata", [None, {}, {"continue": None}, {"continue": "rest"}])
def test_rest_of_a_list_that_is_too_old_is_told(metadata):
    error = make_error(410, json.dumps({**STATUS, "metadata": metadata}).encode(), {})
    assert error.rest == ((metadata or {}).get("continue") or "")


def test_field_is_told_once():
    assert str(make_error(422, json.dumps(INVALID).encode(), {})).count("trafficSplit") == 1


def test_retry_after_is_the_api_servers():
    assert make_error(503, b"", {"Retry-After": "7"}).retry_after == 7
    assert make_error(503, b"", {"Retry-After": "Wed, 21 Oct"}).retry_after == 1


async def test_api_server_that_is_away_is_told(kubernetes, unused_tcp_port):
    kubernetes._callers.configuration.host = f"http://127.0.0.1:{unused_tcp_port}"
    with pytest.raises(errors.UnavailableError, match="ClientConnectorError"):
        await kubernetes.request(Call("GET", "/api"), "token")


async def test_nobodys_connection_has_no_credentials(tmp_path):
    authority = tmp_path / "ca.crt"
    authority.write_text("")
    own = Configuration(host="https://there", api_key={"BearerToken": "secret"}, username="u", password="p")
    own.cert_file, own.key_file, own.ssl_ca_cert = "admin.crt", "admin.key", str(authority)
    nobodys = make_nobodys(own)
    assert (nobodys.host, nobodys.ssl_ca_cert) == ("https://there", str(authority))
    assert not any((nobodys.cert_file, nobodys.key_file, nobodys.api_key, nobodys.username, nobodys.password))
    assert nobodys.refresh_api_key_hook is None


@pytest.mark.parametrize("name", ["photos", "0123456789", "a.b-c", "a" * 253])
def test_name_of_an_object(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "A", "a\n", "-a", "a" * 254, "a%2fb"])
def test_name_that_would_lead_elsewhere_is_nobodys(name):
    with pytest.raises(errors.NotFoundError):
        check_name(name)
