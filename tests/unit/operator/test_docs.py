"""The documentation names what the code has, and nothing else."""

import re
from pathlib import Path
from typing import get_args

import yaml
from pierhead_operator import names, status
from pierhead_operator.resources.overrides import ALLOWED_VARIABLES
from pierhead_operator.settings import AutoscalingSettings, MachineSettings, RolloutSettings
from pierhead_operator.types import AutoscalingMetricSpec

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "operator.md").read_text()
API_PAGE = (REPOSITORY / "docs" / "api.md").read_text()
MONITORING_PAGE = (REPOSITORY / "docs" / "monitoring.md").read_text()
FAILURE_PAGE = (REPOSITORY / "docs" / "failure-modes.md").read_text()
NETWORK_PAGE = (REPOSITORY / "docs" / "network-policies.md").read_text()
SERVER_PAGE = (REPOSITORY / "docs" / "model-server.md").read_text()


def _section(title, page=PAGE):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _first_cells(title, page=PAGE):
    """The code spans in the first column of the tables of a section."""
    rows = [line.split("|")[1] for line in _section(title, page).splitlines() if line.startswith("| `")]
    return {cell for row in rows for cell in re.findall(r"`([^`]+)`", row)}


def test_every_reason_is_documented():
    assert _first_cells("Conditions") == {
        value for name, value in vars(status).items() if name.startswith("REASON_") and isinstance(value, str)
    }


def test_failure_modes_say_what_to_do_for_every_reason():
    assert _first_cells("By reason", FAILURE_PAGE) == _first_cells("Conditions")
    platform_team = {row.split("`")[1] for row in PAGE.splitlines() if row.endswith("| platform team |")}
    [section] = re.findall(r"\n### The platform team\n(.*?)\n## ", FAILURE_PAGE, re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == platform_team


def test_every_label_and_annotation_is_documented():
    keys = {value for name, value in vars(names).items() if name.startswith(("LABEL_", "ANNOTATION_"))}
    assert _first_cells("Labels and annotations") == keys


# Values that hold what the platform team names.
OPEN_VALUES = (
    "api.resources",
    "api.management.resources",
    "operator.resources",
    "server.resources",
    "machines.acceleratorTypes",
    "machines.machineTypes",
)


def _leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in OPEN_VALUES:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_variables_that_authors_may_set_are_documented():
    section = _section("Pods").split("\n### Variables that authors may set\n")[1]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([^`]+)`", "".join(rows))) == sorted(ALLOWED_VARIABLES)


def test_every_chart_value_is_documented():
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())
    leaves = set(_leaves(values))
    # An object that is empty at first is documented by its fields.
    pages = (PAGE, API_PAGE, MONITORING_PAGE, NETWORK_PAGE)
    named = {name for page in pages for name in _first_cells("Chart values", page)}
    documented = {next((leaf for leaf in leaves if name.startswith(f"{leaf}.")), name) for name in named}
    assert documented == leaves


def test_every_rule_of_egress_is_documented():
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())
    rows = [line.split("|")[1] for line in _section("Egress", NETWORK_PAGE).splitlines() if line.startswith("| ")]
    for row, rule in zip(rows[1:], values["networkPolicy"]["egress"], strict=True):
        addresses = [peer["ipBlock"]["cidr"].removesuffix("/32") for peer in rule.get("to", [])]
        ports = [str(port["port"]) for port in rule["ports"]]
        assert re.findall(r"\d[\d.]*", row) == [*addresses, *ports]


def test_every_autoscaling_metric_is_documented():
    rows = re.findall(r"`([^`]+/[^`]+)`", _section("Autoscaling"))
    assert set(rows) == set(get_args(AutoscalingMetricSpec.model_fields["metric_name"].annotation))


def test_rule_of_the_metrics_adapter_is_the_one_that_is_tested():
    [rule] = re.findall(r"```yaml\n(.*?)```", _section("Metrics for the autoscaler"), re.DOTALL)
    manifests = yaml.safe_load_all((REPOSITORY / "cluster" / "manifests" / "prometheus-adapter.yaml").read_text())
    assert [rule] == [one["data"]["config.yaml"] for one in manifests if one["kind"] == "ConfigMap"]
    assert all(name in rule for name in AutoscalingSettings().model_dump().values())


def test_operator_knows_the_settings_that_the_chart_gives_it():
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())
    machines = MachineSettings.model_validate(values["machines"])
    assert machines.accelerator_types["NVIDIA_L4"].resource == "nvidia.com/gpu"
    assert RolloutSettings.model_validate(values["rollout"]) == RolloutSettings()
    assert AutoscalingSettings.model_validate(values["autoscaling"]).requests_in_flight_metric in SERVER_PAGE
