"""The file that the chart writes."""

import pytest
import yaml
from pierhead_api.settings import ApiSettings, load
from pydantic import ValidationError


def test_defaults_and_an_empty_file(tmp_path):
    path = tmp_path / "api.yaml"
    path.write_text("")
    assert load(path) == ApiSettings()
    assert (ApiSettings().locations, ApiSettings().anonymous, ApiSettings().provider) == (["local"], None, "none")


def test_all_is_read(tmp_path):
    path = tmp_path / "api.yaml"
    values = {
        "locations": ["local", "us-central1"],
        "projects": {"photos-prod": "team-a", "123": "team-a"},
        "anonymous": "default/laptop",
        "watchNamespaces": ["team-a"],
        "provider": "istio",
        "authorization": "gateway",
        "audience": "pierhead",
        "management": "http://pierhead-api-management",
        "dedicatedEndpointDns": "models.example.com:443",
        "drainSeconds": 0.5,
    }
    path.write_text(yaml.safe_dump(values))
    assert load(path).model_dump(by_alias=True, exclude={"host", "port"}) == values


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"anonymus": "a/b"}, "anonymus"), ({"anonymous": "laptop"}, "anonymous"), ({"locations": []}, "locations")],
)
def test_mistake_is_named(tmp_path, settings, named):
    path = tmp_path / "api.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ValidationError, match=named):
        load(path)
