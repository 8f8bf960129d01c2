"""A rollout's options as a user of Vertex AI's generated client of v1beta1 sets them; nothing here knows of Pierhead.

`python vertex_beta.py ADDRESS PROJECT PICTURE` with the token in TOKEN. Prints what it sees as one line of JSON.
"""

import json
import os
import sys
from datetime import timedelta

from google.api_core.exceptions import BadRequest
from google.cloud import aiplatform_v1, aiplatform_v1beta1
from google.oauth2.credentials import Credentials

IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"
SECONDS = 240


def main(address, project, _):
    parent = f"projects/{project}/locations/us-central1"
    given = {
        "client_options": {"api_endpoint": address},
        "credentials": Credentials(os.environ["TOKEN"]),
        "transport": "rest",
    }
    models = aiplatform_v1beta1.ModelServiceClient(**given)
    endpoints = aiplatform_v1beta1.EndpointServiceClient(**given)
    seen = {}

    model = {"display_name": "Photos", "artifact_uri": "gs://models/photos/1", "container_spec": {"image_uri": IMAGE}}
    uploaded = models.upload_model(parent=parent, model=model).result(timeout=SECONDS)
    created = endpoints.create_endpoint(parent=parent, endpoint={"display_name": "Photos"}).result(timeout=SECONDS)
    wanted = aiplatform_v1beta1.DeployedModel(
        model=uploaded.model,
        display_name="blue",
        enable_access_logging=True,
        enable_container_logging=True,  # as the SDK sends it below v1beta1
        automatic_resources={"min_replica_count": 1},
        rollout_options={"max_surge_replicas": 2, "max_unavailable_percentage": 10},
    )

    resources = aiplatform_v1beta1.DedicatedResources(max_replica_count=1)
    resources.scale_to_zero_spec.idle_scaledown_period = timedelta(minutes=5)
    scaled = aiplatform_v1beta1.DeployedModel(model=uploaded.model, dedicated_resources=resources)
    try:
        endpoints.deploy_model(endpoint=created.name, deployed_model=scaled)
    except BadRequest as error:
        seen["refused"] = "scaleToZeroSpec" in error.message

    done = endpoints.deploy_model(endpoint=created.name, deployed_model=wanted, traffic_split={"0": 100})
    answered = done.result(timeout=SECONDS).deployed_model
    [read] = endpoints.get_endpoint(name=created.name).deployed_models
    options = read.rollout_options
    seen["answered"] = answered.id == read.id
    seen["read"] = [options.max_surge_replicas, options.max_unavailable_percentage, read.enable_container_logging]
    [plain] = aiplatform_v1.EndpointServiceClient(**given).get_endpoint(name=created.name).deployed_models
    seen["in_v1"] = [plain.id == read.id, plain.enable_access_logging, plain.disable_container_logging]

    endpoints.undeploy_model(endpoint=created.name, deployed_model_id=read.id).result(timeout=SECONDS)
    endpoints.delete_endpoint(name=created.name).result(timeout=SECONDS)
    models.delete_model(name=uploaded.model).result(timeout=SECONDS)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
