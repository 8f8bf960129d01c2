"""The file that the chart writes, and what counts before it."""

import pytest
from pierhead_operator import settings
from pierhead_operator.settings import OperatorSettings
from pydantic import ValidationError


def test_server_image_is_the_variables_where_there_is_one(tmp_path):
    file = tmp_path / "operator.yaml"
    file.write_text("server: {imagePullPolicy: Always}\n")
    assert settings.load(file, "registry.example.com/server:1").server.image == "registry.example.com/server:1"
    file.write_text("server: {image: in-the-file}\n")
    assert settings.load(file).server.image == "in-the-file"


def test_image_without_torch_is_the_variables_where_there_is_one(tmp_path):
    file = tmp_path / "operator.yaml"
    file.write_text("server: {image: large, openvinoImage: in-the-file}\n")
    assert settings.load(file).server.openvino_image == "in-the-file"
    assert (
        settings.load(file, None, "registry.example.com/small:1").server.openvino_image
        == "registry.example.com/small:1"
    )
    file.write_text("server: {image: large}\n")
    assert settings.load(file).server.openvino_image is None


def test_more_locations_than_a_rule_takes_are_refused_with_the_number():
    others = [f"us-central{number}" for number in range(10)]
    with pytest.raises(ValidationError, match=r"otherLocations\n.*at most 9 .*, not 10"):
        OperatorSettings.model_validate({"server": {"image": "x"}, "otherLocations": others})


@pytest.mark.parametrize("variable", [{}, {"name": None}, {"name": 4}, {"name": {"a": 1}}])
def test_variable_without_a_name_is_refused(variable):
    with pytest.raises(ValidationError, match=r"server\.env\.0\n.*a variable's name must be a string"):
        OperatorSettings.model_validate({"server": {"image": "x", "env": [variable]}})
