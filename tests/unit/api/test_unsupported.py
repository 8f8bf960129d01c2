"""Every path of Vertex AI's own description is served, or is known as what it is."""

import json
import re
from pathlib import Path

import googleapiclient
import pytest
from pierhead_api.predictions import parse_prediction
from pierhead_api.routes import VERBS
from pierhead_api.unsupported import find_unsupported

DOCUMENTS = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
AT = "/v1/projects/p/locations/l"


def list_paths(resource):
    """Method and path of each of Vertex AI's verbs below a location, each id of which is an x."""
    for method in resource.get("methods", {}).values():
        path = "/" + re.sub(r"\{\w+\}", "x", method["flatPath"])
        if "/locations/x/" in path:
            yield method["httpMethod"], path
    for inner in resource.get("resources", {}).values():
        yield from list_paths(inner)


def is_served(method, path):
    patterns = [
        (verb.method, re.sub(r"\{parent:parent\}", "(endpoints|models)/x", verb.path).replace("{id:part}", "x"))
        for verb in VERBS
    ]
    below = path.split("/", 4)[4]
    return any(
        method == served and re.fullmatch(pattern.replace("{location:part}", "x").lstrip("/"), below)
        for served, pattern in patterns
    )


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_every_verb_of_vertex_ai_is_served_or_known(version):
    document = json.loads((DOCUMENTS / f"aiplatform.{version}.json").read_text())
    paths = list(list_paths(document))
    assert len(paths) > 500
    unknown = [
        f"{method} {path}"
        for method, path in paths
        if not (is_served(method, path) or parse_prediction(path) or find_unsupported(path))
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/customJobs", "customJobs"),
        ("/customJobs/5:cancel", "customJobs"),
        ("/endpoints/e:countTokens", "endpoints.countTokens"),
        ("/endpoints/e/chat/completions", "endpoints.chat"),
        ("/models:copy", "models.copy"),
        ("/models/m/evaluations/e:x", "models.evaluations"),
        (":evaluateInstances", "evaluateInstances"),
        ("/endpoints/e:fly", ""),
        ("/endpoints/e/fly", ""),
        ("/fly", ""),
        ("/x/y/" + "c" * 60_000 + ":-", ""),
        ("/x/y/" + "c/" * 900 + ":-", ""),
        ("", ""),
    ],
)
def test_what_is_not_supported_is_known_by_its_name(path, name):
    assert find_unsupported(AT + path) == name


def test_nothing_that_is_served_is_called_unsupported():
    served = [verb.path.replace("{location:part}", "l").replace("{id:part}", "x") for verb in VERBS]
    paths = [f"/v1/projects/p{path.replace('{parent:parent}', 'endpoints/x')}" for path in served]
    assert [path for path in paths if find_unsupported(path)] == []
