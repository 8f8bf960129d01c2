"""Which paths are predictions, and of what. Pure."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from pierhead_operator import names

_ENDPOINT = r"locations/(?P<location>[^/:]+)/endpoints/(?P<endpoint>[^/:]+):(?P<verb>predict|rawPredict|explain)"
_MODEL = r"models/(?P<model>[^/:]+)(?:/versions/(?P<version>[^/:]+))?:predict"
_PREDICTION = re.compile(rf"/(?:v1|v1beta1)/projects/(?P<project>[^/:]+)/(?:{_ENDPOINT}|{_MODEL})")
_LOOKS_LIKE_ONE = re.compile(r":\s*(predict|rawPredict|explain)\W*$", re.IGNORECASE)


@dataclass(frozen=True)
class Prediction:
    """What a prediction is asked of, by the words of its path."""

    resource: Literal["endpoints", "models"]  # as RBAC knows it
    project: str
    name: str  # Kubernetes', whatever AI Platform calls it
    verb: str
    location: str | None = None  # AI Platform, which names a Model, knows none
    version: str | None = None  # of a Model; its default one where none is named

    @property
    def told_name(self) -> str:
        """The name that whoever asks knows."""
        return names.ai_platform(self.name) if self.resource == "models" else self.name

    @property
    def path(self) -> str:
        """As the model server knows it."""
        if self.resource == "endpoints":
            return f"/v1/projects/{self.project}/locations/{self.location}/endpoints/{self.name}:{self.verb}"
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v1/projects/{self.project}/models/{self.name}{version}:{self.verb}"


def parse_prediction(path: str) -> Prediction | None:
    """The prediction that a path, with nothing escaped, asks for; None where it is the path of something else."""
    found = _PREDICTION.fullmatch(path)
    if found is None:
        return None
    parts = found.groupdict()
    if parts["endpoint"]:
        return Prediction("endpoints", parts["project"], parts["endpoint"], parts["verb"], parts["location"])
    name = names.of_ai_platform(parts["model"])
    return Prediction("models", parts["project"], name, "predict", version=parts["version"])


def looks_like_prediction(path: str) -> bool:
    """Whether somebody who reads paths less strictly could take this one for a prediction."""
    return bool(_LOOKS_LIKE_ONE.search(unquote(path)))
