"""An artifact that nothing is computed with."""

import pytest


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "model.yaml").write_text("format: predictor\n")
    (folder / "predictor.py").write_text("")
    return folder
