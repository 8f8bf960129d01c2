"""Where a batch job may read and write."""

import pytest
from pierhead_server.batch.allowed import Allowed, parse_address
from pierhead_server.errors import SettingsInvalidError
from pierhead_server.settings import load_settings

LIST = (
    "gs://",
    "s3://photos",
    "pvc://data",
    "https://images.example.com",
    "https://*.cdn.example:8443",
    "http://[::1]",
)
# What an allow-list says of an address: whether a request goes there.
ROWS = [
    ("gs://any/x", LIST, True),
    ("GS://any/x", LIST, False),
    ("s3://photos/x", LIST, True),
    ("s3://photos2/x", LIST, False),
    ("az://any/x", LIST, False),
    ("pvc://data/x", LIST, True),
    ("pvc://other/x", LIST, False),
    ("file:///etc/passwd", LIST, False),
    ("file:///etc/passwd", ("file://",), True),
    ("https://images.example.com/a?b=c", LIST, True),
    ("https://IMAGES.example.com:443/a", LIST, True),
    ("https://images.example.com:444/a", LIST, False),
    ("http://images.example.com/a", LIST, False),
    ("https://images.example.com.evil.test/a", LIST, False),
    ("https://evil.test/images.example.com", LIST, False),
    ("https://a.b.cdn.example:8443/", LIST, True),
    ("https://cdn.example:8443/", LIST, False),
    ("https://xcdn.example:8443/", LIST, False),
    ("https://a.cdn.example/", LIST, False),
    ("http://169.254.169.254/computeMetadata/v1/", LIST, False),
    ("http://169.254.169.254/computeMetadata/v1/", ("http://*",), True),
    ("http://169.254.169.254:8080/", ("http://*",), False),
    ("https://any.test/", ("https://*",), True),
    ("gs://any/x", (), False),
]
NO_ADDRESSES = [
    "x", "gs:/b/x", "gs://", "gs:///x", "gs://b?x/y", "gs://user@b/x", "gs://b:1/x", "gs://../x", "gs://a b/x",
    "gs://b#f/x", "gs://b\\c/x", "file://host/x", "https://", "https://:443/", "https://user:pass@images.example.com/",
    "https://images.example.com@evil.test/", "https://images.example.com\\@evil.test/", "https://h:99999/", "https://[::1/",
    "https://exa mple.com/", "https://\u24d4xample.com/", "https://h:x/",
]  # fmt: skip


@pytest.mark.parametrize(("uri", "entries", "allowed"), ROWS)
def test_address_is_allowed(uri, entries, allowed):
    refused = Allowed(entries).explain(uri)
    assert (refused is None) is allowed
    assert allowed or "does not allow" in refused


@pytest.mark.parametrize("uri", NO_ADDRESSES)
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(ValueError, match=r"not|takes no"):
        parse_address(uri)


def test_default_is_storage():
    allowed = load_settings(artifact_uri="gs://m/1").batch_allowed_uris
    assert [allowed.explain(f"{scheme}://a/b") is None for scheme in ("gs", "s3", "az", "pvc", "https", "http")] == [
        *(True, True, True, True),
        *(False, False),
    ]
    assert allowed.explain("file:///a")


def test_list_is_read_of_the_environment(monkeypatch):
    monkeypatch.setenv("PIERHEAD_BATCH_ALLOWED_URIS", "gs://photos, https://*.example.com")
    allowed = load_settings(artifact_uri="gs://m/1").batch_allowed_uris
    assert allowed.entries == ("gs://photos", "https://*.example.com")


@pytest.mark.parametrize(
    "entry", ["gs", "ftp://a", "https://", "https://a/b", "gs://a/b", "https://a*b", "file:///a", ""]
)
def test_wrong_entry_is_told(monkeypatch, entry):
    monkeypatch.setenv("PIERHEAD_BATCH_ALLOWED_URIS", f"gs://,{entry}")
    with pytest.raises(SettingsInvalidError, match=r"PIERHEAD_BATCH_ALLOWED_URIS: .*must be gs://"):
        load_settings(artifact_uri="gs://m/1")
