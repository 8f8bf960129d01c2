"""The environment, read once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pierhead_server import errors
from pierhead_server.errors import SettingsInvalidError, StartupError
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import ServedModel
from pierhead_server.settings import Settings, load_settings

PAGE = (Path(__file__).parents[3] / "docs" / "model-server.md").read_text()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "gs://models/photos/1")
    return monkeypatch


def test_defaults_serve():
    settings = load_settings()
    assert (settings.port, settings.model_dir, settings.artifact_digest) == (8080, Path("/models"), None)
    assert (settings.device, settings.workers, settings.compile, settings.allow_code) == ("auto", None, True, False)


@pytest.mark.parametrize(
    "address",
    ["gs://models/photos/1", "gs://models", "s3://models/photos", "az://models/photos", "file:///models/a%20folder"],
)
def test_artifact_may_lie_in_any_storage(environment, address):
    environment.setenv("PIERHEAD_ARTIFACT_URI", address)
    assert load_settings().artifact_uri == address


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("ALLOW_CODE", "true", True),
        ("ALLOW_CODE", "0", False),
        ("COMPILE", "false", False),
        ("DEVICE", "cuda", "cuda"),
        ("WORKERS", "3", 3),
        ("WORKERS", "", None),
        ("COMPILED_DIR", "/cache", Path("/cache")),
        ("PREDICT_TIMEOUT_SECONDS", "0.5", 0.5),
        ("LOG_FORMAT", "text", "text"),
        ("ACCESS_LOG", "true", True),
        ("MODEL_CACHE_BYTES", "0", 0),
        ("MODEL_CACHE_BYTES", "", None),
    ],
)
def test_variable_sets_its_setting(environment, variable, value, expected):
    environment.setenv(f"PIERHEAD_{variable}", value)
    assert getattr(load_settings(), variable.lower()) == expected


def _variables():
    return sorted(str(field.validation_alias) for field in Settings.model_fields.values())


def _spellings(name):
    """What is not that name and differs from it by nothing but case."""
    prefix, rest = name[:9], name[9:]
    return {name.lower(), name.title(), prefix + rest.lower(), prefix.lower() + rest, rest, rest.lower()} - {name}


@pytest.mark.parametrize("name", _variables())
def test_variable_counts_in_its_own_spelling_alone(environment, name):
    """Who says which variables a pod may have compares them as Kubernetes does: by case."""
    before = load_settings()
    # Of any setting either another value or a bad one.
    for value in ("true", "false", "file:///elsewhere", "7", "debug", "text", "cpu"):
        for spelling in _spellings(name):
            environment.setenv(spelling, value)
        assert load_settings() == before


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
@pytest.mark.parametrize("value", ["a@elsewhere.example/", "elsewhere.example#", "x.elsewhere.example:443/"])
def test_region_is_no_way_to_another_host(environment, name, value):
    environment.setenv(name, "eu-central-1")
    load_settings()
    environment.setenv(name, value)
    with pytest.raises(SettingsInvalidError, match=f"^{name}: "):
        load_settings()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/pierhead/compiled"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/pierhead/compiled"),
        ({"XDG_CACHE_HOME": "/caches", "PIERHEAD_COMPILED_DIR": "/own"}, "/own"),
    ],
)
def test_compiled_forms_are_kept_in_the_users_cache(environment, variables, folder):
    for name, value in variables.items():
        environment.setenv(name, value)
    assert load_settings().compiled_dir == Path(folder)


def test_what_is_given_goes_before_the_environment(environment):
    environment.setenv("PIERHEAD_PORT", "1")
    assert load_settings(port=2, artifact_uri="file:///models").port == 2
    with pytest.raises(SettingsInvalidError, match=r"^PIERHEAD_PORT: "):
        load_settings(port=70_000)


def test_all_that_is_wrong_is_told_at_once(environment):
    environment.delenv("PIERHEAD_ARTIFACT_URI")
    environment.setenv("PIERHEAD_WORKERS", "0")
    with pytest.raises(SettingsInvalidError, match=r"^PIERHEAD_ARTIFACT_URI: .*; PIERHEAD_WORKERS: "):
        load_settings()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://storage.example:4443", "http://storage.example:4443"),
        ("storage.example:4443", "http://storage.example:4443"),
        ("https://storage.example/", "https://storage.example"),
        ("", None),
    ],
)
def test_emulator_may_come_without_scheme(environment, given, address):
    environment.setenv("STORAGE_EMULATOR_HOST", given)
    assert load_settings().storage_emulator_host == address


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIERHEAD_ARTIFACT_URI", ""),
        ("PIERHEAD_ARTIFACT_URI", "models/photos"),
        ("PIERHEAD_ARTIFACT_URI", "gs:///photos"),
        ("PIERHEAD_ARTIFACT_URI", "ftp://models/photos"),
        ("PIERHEAD_ARTIFACT_DIGEST", "sha256:abc"),
        ("PIERHEAD_PORT", "http"),
        ("PIERHEAD_QUEUE_SIZE", "0"),
        ("PIERHEAD_MODEL_CACHE_BYTES", "-1"),
        ("PIERHEAD_DRAIN_SECONDS", "-1"),
        ("PIERHEAD_DRAIN_SECONDS", "inf"),
        ("PIERHEAD_PREDICT_TIMEOUT_SECONDS", "0"),
        ("PIERHEAD_PREDICT_TIMEOUT_SECONDS", "inf"),
        ("PIERHEAD_PREDICT_TIMEOUT_SECONDS", "nan"),
        ("PIERHEAD_WORKERS", "0"),
        ("PIERHEAD_DEVICE", "tpu"),
        ("PIERHEAD_ALLOW_CODE", "perhaps"),
        ("PIERHEAD_LOG_FORMAT", "xml"),
        ("PIERHEAD_LOG_SAMPLE", "1.1"),
    ],
)
def test_bad_variable_is_named(environment, variable, value):
    environment.setenv(variable, value)
    with pytest.raises(SettingsInvalidError, match=f"^{variable}: "):
        load_settings()


def test_listener_imports_no_torch():
    program = "import sys, pierhead_server.serve; sys.exit(bool({'torch', 'torchvision', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def documented(section):
    """The code spans in the first column of a section's table."""
    table = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE))


def test_every_variable_is_documented():
    assert documented("Environment") == set(_variables())


def test_every_metric_is_documented():
    exposed = Metrics(ServedModel("", "", "", "")).expose().decode()
    assert documented("Metrics") == set(re.findall(r"^# TYPE (pierhead_\w+)", exposed, flags=re.MULTILINE))


def test_every_reason_is_documented():
    reasons = {
        error.reason
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, StartupError) and error is not StartupError
    }
    assert documented("When it cannot serve") == reasons
