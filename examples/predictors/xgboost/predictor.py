"""Tumours by an XGBoost classifier, for which NaN is a value that was not measured."""

from pathlib import Path

import numpy as np
import xgboost


class Predictor:
    """A custom prediction routine."""

    def __init__(self, booster):
        self._booster = booster

    @classmethod
    def from_path(cls, model_dir):
        """Called once, before the first request; `model_dir` is the artifact's folder."""
        booster = xgboost.Booster()
        booster.load_model(Path(model_dir) / "model.ubj")
        return cls(booster)

    def predict(self, instances):
        """For each instance, a list of 30 measurements, the probability that the tumour is benign."""
        # null becomes NaN here, so that it means the same.
        features = np.asarray(instances, dtype=np.float32)
        return self._booster.inplace_predict(features, missing=np.nan)
