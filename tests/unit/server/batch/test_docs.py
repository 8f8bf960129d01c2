"""docs/batch.md says what the code does."""

import re
from pathlib import Path

import pytest
from pierhead_server import errors as server_errors
from pierhead_server.batch import errors
from pierhead_server.batch.app import Monitor, create_app
from pierhead_server.batch.document import DOCUMENT_VARIABLE, INDEX_VARIABLE, Document
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.shard import SUSPECTS
from pierhead_server.batch.storage import FIRST_BACKOFF_SECONDS, ROUNDS
from pierhead_server.metrics import Metrics
from pierhead_server.protocol import ServedModel

PAGE = (Path(__file__).parents[4] / "docs" / "batch.md").read_text()


def section(name):
    return PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]


def documented(name):
    return set(re.findall(r"^\| `([^`]+)`", section(name), flags=re.MULTILINE))


def expose(metrics):
    return set(re.findall(r"^# TYPE (pierhead_\w+)", metrics.expose().decode(), flags=re.MULTILINE))


def test_every_metric_is_documented():
    metrics = Metrics(ServedModel("", "", "", ""))
    servers = expose(metrics)
    Pulse(metrics.registry)
    assert documented("Metrics") == expose(metrics) - servers


def test_every_variable_and_field_is_documented():
    assert documented("Environment") == {DOCUMENT_VARIABLE, INDEX_VARIABLE}
    for field in Document.model_fields.values():
        assert f"`{field.alias}`" in section("Environment")


def test_every_route_is_documented():
    metrics = Metrics(ServedModel("", "", "", ""))
    app = create_app(Monitor(metrics, Pulse(metrics.registry), lambda: None))
    assert documented("Routes") == {f"GET {route.path}" for route in app.routes}


@pytest.mark.parametrize("module", [errors, server_errors])
def test_every_reason_and_its_exit_code_are_documented(module):
    rows = dict(re.findall(r"^\| (`.+`) \| (\d+) \|", section("How it ends"), flags=re.MULTILINE))
    told = {reason: int(code) for reasons, code in rows.items() for reason in re.findall(r"`(\w+)`", reasons)}
    family = server_errors.StartupError
    reasons = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, family)]
    for kind in reasons:
        if kind is not family:
            assert told[kind.reason] == errors.exit_code(kind(""))


def test_numbers_are_those_of_the_code():
    assert f"the next {SUSPECTS} lines one by one" in PAGE
    assert (ROUNDS, FIRST_BACKOFF_SECONDS) == (5, 1.0)
    assert "then four times more, 1, 2, 4 and 8 s later" in PAGE
