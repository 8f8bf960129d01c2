"""Which paths are predictions."""

import pytest
from pierhead_api.predictions import Prediction, looks_like_prediction, parse_prediction

ENDPOINT = "/v1/projects/p/locations/l/endpoints/e"


@pytest.mark.parametrize(
    ("path", "prediction"),
    [
        (f"{ENDPOINT}:predict", Prediction("endpoints", "p", "e", "predict", "l")),
        (f"{ENDPOINT}:rawPredict", Prediction("endpoints", "p", "e", "rawPredict", "l")),
        (f"{ENDPOINT}:explain", Prediction("endpoints", "p", "e", "explain", "l")),
        ("/v1/projects/p/models/m:predict", Prediction("models", "p", "m", "predict")),
        ("/v1/projects/p/models/m/versions/2:predict", Prediction("models", "p", "m", "predict", version="2")),
    ],
)
def test_path_is_a_prediction_of(path, prediction):
    assert parse_prediction(path) == prediction
    assert prediction.path == path
    assert parse_prediction(path.replace("/v1/", "/v1beta1/")) == prediction


def test_model_is_known_by_the_name_that_kubernetes_has():
    prediction = parse_prediction("/v1/projects/p/models/my_Model/versions/v1_2:predict")
    assert prediction == Prediction("models", "p", "my--model---8", "predict", version="v1_2")
    assert prediction.told_name == "my_Model"
    assert prediction.path == "/v1/projects/p/models/my--model---8/versions/v1_2:predict"


@pytest.mark.parametrize(
    "path",
    [
        ENDPOINT,
        f"{ENDPOINT}:deployModel",
        f"{ENDPOINT}:predict/",
        f"{ENDPOINT}:predict\n",
        f"/{ENDPOINT}:predict",
        f"{ENDPOINT}/x:predict",
        f"/ui{ENDPOINT}:predict",
        "/v1/projects/p/locations/l/models/m:predict",
        "/v1/projects/p/models/m:rawPredict",
    ],
)
def test_other_paths_are_none(path):
    assert parse_prediction(path) is None


@pytest.mark.parametrize("path", [f"/{ENDPOINT}:predict", f"{ENDPOINT}%3Apredict", f"{ENDPOINT}:Predict/"])
def test_what_another_could_take_for_one_is_known(path):
    assert looks_like_prediction(path)


def test_management_does_not_look_like_a_prediction():
    assert not looks_like_prediction(f"{ENDPOINT}:deployModel")
    assert not looks_like_prediction("/v1/projects/p/locations/l/endpoints/predict")
