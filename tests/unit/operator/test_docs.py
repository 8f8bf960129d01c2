"""The documentation names what the code has, and nothing else."""

import re
from pathlib import Path

import yaml
from pierhead_operator import names, status

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "operator.md").read_text()


def _section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _first_cells(title):
    """The code spans in the first column of the tables of a section."""
    rows = [line.split("|")[1] for line in _section(title).splitlines() if line.startswith("| `")]
    return {cell for row in rows for cell in re.findall(r"`([^`]+)`", row)}


def test_every_reason_is_documented():
    assert _first_cells("Conditions") == {
        value for name, value in vars(status).items() if name.startswith("REASON_") and isinstance(value, str)
    }


def test_every_label_and_annotation_is_documented():
    keys = {value for name, value in vars(names).items() if name.startswith(("LABEL_", "ANNOTATION_"))}
    assert _first_cells("Labels and annotations") == keys


def _leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in ("operator.resources", "server.resources"):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_chart_value_is_documented():
    values = yaml.safe_load((REPOSITORY / "charts" / "pierhead" / "values.yaml").read_text())
    documented = {name.replace("routing.gateway.namespace", "routing.gateway") for name in _first_cells("Chart values")}
    assert documented - {"routing.gateway.name"} == set(_leaves(values))
