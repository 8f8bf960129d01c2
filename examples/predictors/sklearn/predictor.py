"""Iris flowers by a scikit-learn classifier: what `format: predictor` calls in every server."""

from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression


class Predictor:
    """A custom prediction routine."""

    def __init__(self, classifier, names):
        self._classifier = classifier
        self._names = names

    @classmethod
    def from_path(cls, model_dir):
        """Called once, before the first request; `model_dir` is the artifact's folder."""
        # The fitted numbers alone, so that no pickle has to be trusted.
        with np.load(Path(model_dir) / "model.npz", allow_pickle=False) as fitted:
            classifier = LogisticRegression()
            classifier.coef_ = fitted["coefficients"]
            classifier.intercept_ = fitted["intercepts"]
            classifier.classes_ = np.arange(len(fitted["names"]))
            classifier.n_features_in_ = fitted["coefficients"].shape[1]
            return cls(classifier, fitted["names"])

    def predict(self, instances, *, probabilities=False):
        """One prediction for each instance: the flower's name, or every name's probability.

        `probabilities` is what else stands in the request: {"instances": [...], "probabilities": true}.
        """
        features = np.asarray(instances, dtype=np.float64)
        if probabilities:
            return [
                dict(zip(self._names.tolist(), row, strict=True))
                for row in self._classifier.predict_proba(features).tolist()
            ]
        return self._names[self._classifier.predict(features)]
