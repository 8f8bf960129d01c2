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
        ("PIERHEAD_DRAIN_SECONDS", "-1"),
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
    names = {field.validation_alias or f"PIERHEAD_{name.upper()}" for name, field in Settings.model_fields.items()}
    assert documented("Environment") == names


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
