"""The file that the chart writes, and what counts before it."""

from pierhead_operator import settings


def test_server_image_is_the_variables_where_there_is_one(tmp_path):
    file = tmp_path / "operator.yaml"
    file.write_text("server: {imagePullPolicy: Always}\n")
    assert settings.load(file, "registry.example.com/server:1").server.image == "registry.example.com/server:1"
    file.write_text("server: {image: in-the-file}\n")
    assert settings.load(file).server.image == "in-the-file"
