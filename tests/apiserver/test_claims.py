"""Of two operators that take a resource at once the API server lets one have it."""

import pytest
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from pierhead_operator.cluster import Cluster, Conflict
from pierhead_operator.installation import mark_claimed
from pierhead_operator.types import Model

from tests.e2e.conftest import make_predictor_model
from tests.kube import scale_operator

# The installed operator would be a third.
pytestmark = pytest.mark.exclusive


@pytest.fixture
def still(cluster):
    scale_operator(0)
    yield
    scale_operator(1)


async def test_claim_of_what_another_has_claimed_meanwhile_is_refused(still, kubectl):
    kubectl.apply(make_predictor_model({"name": "v1", "artifactUri": "gs://models/photos/1"}))
    configuration = Configuration()
    await load_kube_config(client_configuration=configuration)
    async with ApiClient(configuration) as api:
        cluster = Cluster(api)
        free = await cluster.get_resource(Model, kubectl.namespace, "photos")
        await cluster.apply_status(free, mark_claimed(free.status, "first/operator"))
        with pytest.raises(Conflict):
            await cluster.apply_status(free, mark_claimed(free.status, "second/operator"))
        assert _find_holder(kubectl) == "first/operator"
        # Once it is known who has it, it can be followed.
        known = await cluster.get_resource(Model, kubectl.namespace, "photos")
        await cluster.apply_status(known, mark_claimed(known.status, "second/operator"))
        assert _find_holder(kubectl) == "second/operator"


def _find_holder(kubectl):
    return kubectl.get("model", "photos")["status"]["installation"]
