"""Versions that come and go, a Model that is made again, and a DeployedModel that changes its mind, in random orders.

What ran under a name on a DeployedModel is what runs there under that name.
"""

import random
from copy import deepcopy

import pytest
from pierhead_operator.reconcile import Reconciler

from tests.unit.operator.conftest import make_deployed_model, make_endpoint, make_model
from tests.unit.operator.fakes import Clock, FakeCluster, FakeProber
from tests.unit.operator.test_reconcile import DM, MODEL

NAMES = ("a", "b", "c")
STEPS = ("remove", "add", "make again", "ask", "restart", "look")


class Author:
    """Does one thing after the other to a Model and its DeployedModel."""

    def __init__(self, seed):
        self.random = random.Random(seed)  # noqa: S311
        self.cluster = FakeCluster(self._make_model(), make_endpoint(), make_deployed_model())

    def _make_version(self, name):
        return {"name": name, "artifactUri": f"gs://models/{name}/{self.random.choice('12')}"}

    def _make_model(self):
        versions = [self._make_version(name) for name in NAMES if self.random.random() < 0.8]
        versions = versions or [self._make_version("a")]
        model = make_model(versions=versions, defaultVersion=versions[0]["name"])
        model["metadata"]["uid"] = f"uid-{self.random.random()}"
        return model

    def act(self, step):
        model = self.cluster.objects["Model", "photos"]
        versions, spec = model["spec"]["versions"], self.cluster.objects["DeployedModel", "photos-1"]["spec"]
        if step == "remove" and len(versions) > 1:
            versions.remove(self.random.choice(versions))
            model["spec"]["defaultVersion"] = versions[0]["name"]
        elif step == "add":
            there = {version["name"] for version in versions}
            versions += [self._make_version(name) for name in NAMES if name not in there]
        elif step == "make again":
            self.cluster.objects["Model", "photos"] = deepcopy(self._make_model())
        elif step == "ask":
            spec["modelVersion"] = self.random.choice([*NAMES, None])


def _find_running(cluster):
    """The version and the artifact of the pods, if there are any."""
    deployment = cluster.objects.get(("Deployment", "dm-photos-1"))
    containers = deployment["spec"]["template"]["spec"]["containers"] if deployment else []
    env = {variable["name"]: variable.get("value") for container in containers for variable in container["env"]}
    return env.get("PIERHEAD_MODEL_VERSION_ID"), env.get("PIERHEAD_ARTIFACT_URI")


@pytest.mark.parametrize("seed", range(60))
async def test_name_stays_one_artifacts(settings, seed):
    author, ran, log = Author(seed), {}, []
    cluster = author.cluster
    reconciler = Reconciler(cluster, FakeProber(), settings, Clock())
    for _ in range(40):
        step = author.random.choice(STEPS)
        author.act(step)
        if step == "restart":
            reconciler = Reconciler(cluster, FakeProber(), settings, Clock())
        elif step != "ask":
            await reconciler.reconcile(MODEL)
        await reconciler.reconcile(DM)
        version, artifact = _find_running(cluster)
        log.append((step, version, artifact))
        assert ran.setdefault(version, artifact) == artifact, log
    assert any(ran)
