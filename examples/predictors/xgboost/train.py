"""Fit the classifier and write an artifact with it.

python examples/predictors/xgboost/train.py build/tumours
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import xgboost
from sklearn.datasets import load_breast_cancer


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.yaml", "predictor.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    tumours = load_breast_cancer()
    features = tumours.data.astype(np.float32)
    # As in a clinic, not everything was measured of everybody: from this XGBoost learns where NaN belongs.
    features[np.random.default_rng(0).random(features.shape) < 0.2] = np.nan
    data = xgboost.DMatrix(features, label=tumours.target)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "seed": 0}, data, num_boost_round=30)
    booster.save_model(folder / "model.ubj")
    right = np.mean((booster.predict(data) > 0.5) == tumours.target)
    print(f"{folder}: right for {right:.0%} of the tumours it was fitted to")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
