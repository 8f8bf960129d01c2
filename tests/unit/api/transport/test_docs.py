"""The documentation names what the code has, and nothing else."""

import re
from pathlib import Path

import yaml
from pierhead_api import errors, transport
from pierhead_api.access import ALLOW_SECONDS, DENY_SECONDS
from pierhead_api.errors import ApiError
from pierhead_api.metrics import Metrics
from pierhead_api.routes import VERBS
from pierhead_api.settings import ApiSettings

REPOSITORY = Path(__file__).parents[4]
PAGE = (REPOSITORY / "docs" / "api.md").read_text()


def _rows(title):
    """The cells of the table of a section."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")][
        1:
    ]


def test_every_error_is_documented():
    kinds = {kind for module in (errors, transport) for kind in vars(module).values() if isinstance(kind, type)}
    known = {(str(kind.code), kind.status) for kind in kinds if issubclass(kind, ApiError) and kind is not ApiError}
    assert {(code, status.strip("`")) for code, status, _ in _rows("Errors")} == known


def test_every_metric_is_documented():
    told = set(re.findall(r"^# TYPE (\w+)", Metrics().render().decode(), re.MULTILINE))
    documented = {name.strip("`") for name, _, _ in _rows("Metrics")}
    assert documented == {name for name in told if name.startswith("pierhead_")}


def test_seconds_of_a_verdict_are_documented():
    assert f"remembers a yes for {ALLOW_SECONDS:g} seconds and a no for {DENY_SECONDS:g}" in PAGE
    assert f"goes on for {ApiSettings().drain_seconds:g} seconds" in PAGE


def test_chart_writes_settings_that_the_api_knows():
    template = (REPOSITORY / "charts" / "pierhead" / "templates" / "api-config.yaml").read_text()
    keys = re.findall(r"^    (\w+): ", template.split("api.yaml: |\n")[1], re.MULTILINE)
    names = {field.alias for field in ApiSettings.model_fields.values()}
    assert set(keys) <= names
    # Those that the pod has no say in.
    assert names - set(keys) == {"host", "port", "drainSeconds"}


def test_istio_route_names_every_verb_that_is_not_a_prediction():
    template = (REPOSITORY / "charts" / "pierhead" / "templates" / "api-routes.yaml").read_text()
    [regex] = re.findall(r"regex: '(.*)'", template)
    at = "projects/team-a/locations/local"
    names = {"location": "local", "id": "m%402", "parent": "endpoints/e", "version": "2"}
    for verb in VERBS:
        path = re.sub(r"{(\w+):\w+}", lambda found: names[found[1]], verb.path)
        assert re.fullmatch(regex, f"/v1/projects/team-a{path}"), path
    for path in ("endpoints/e:predict", "endpoints/e%3ApredictX", "endpoints/e:rawPredict", "endpoints/e%3apredict"):
        assert not re.fullmatch(regex, f"/v1/{at}/{path}")


def test_values_are_those_that_an_api_starts_with():
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())["api"]
    assert ApiSettings(projects=values["projects"], anonymous=values["anonymous"] or None) == ApiSettings()
