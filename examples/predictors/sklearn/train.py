"""Fit the classifier and write an artifact with it.

python examples/predictors/sklearn/train.py build/iris
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.yaml", "predictor.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    iris = load_iris()
    classifier = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
    names = np.asarray(iris.target_names, dtype=np.str_)
    np.savez(folder / "model.npz", coefficients=classifier.coef_, intercepts=classifier.intercept_, names=names)
    print(f"{folder}: right for {classifier.score(iris.data, iris.target):.0%} of the flowers it was fitted to")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
