"""The life of an endpoint as a user of Vertex AI's Python SDK writes it; nothing here knows of Pierhead.

`python vertex_sdk.py ADDRESS PROJECT PICTURE` with the token in TOKEN and, for the job's output, the storage's address in
STORAGE_EMULATOR_HOST, and the authority of the address' certificate in REQUESTS_CA_BUNDLE. Prints what it sees as one
line of JSON.
"""

import base64
import json
import os
import sys
from pathlib import Path

from google.api_core.exceptions import FailedPrecondition, GoogleAPICallError
from google.cloud import aiplatform
from google.oauth2.credentials import Credentials

IMAGE = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-cpu.2-4:latest"


def main(address, project, picture):
    aiplatform.init(
        project=project,
        location="us-central1",
        api_transport="rest",
        api_endpoint=address,
        credentials=Credentials(os.environ["TOKEN"]),
    )
    instance = {"content": base64.b64encode(Path(picture).read_bytes()).decode(), "mimeType": "image/png"}
    seen = {}

    first = aiplatform.Model.upload(
        display_name="Photos", artifact_uri="gs://models/photos/1", serving_container_image_uri=IMAGE
    )
    second = aiplatform.Model.upload(
        parent_model=first.resource_name,
        artifact_uri="gs://models/photos/2",
        serving_container_image_uri=IMAGE,
        is_default_version=False,
        version_aliases=["candidate"],
    )
    seen["versions"] = [first.version_id, second.version_id]
    seen["candidate"] = aiplatform.Model(f"{first.name}@candidate").version_id

    endpoint = aiplatform.Endpoint.create(display_name="Photos", labels={"team": "a"}, dedicated_endpoint_enabled=True)
    endpoint.deploy(first, deployed_model_display_name="blue", min_replica_count=1, enable_access_logging=True)
    answer = endpoint.predict([instance], parameters={"maxPredictions": 1})
    [prediction] = answer.predictions
    seen["prediction"] = prediction["displayNames"]
    seen["answered_by_version"] = answer.model_version_id
    # To the endpoint's own address, over TLS.
    raw = endpoint.raw_predict(json.dumps({"instances": [instance]}).encode(), {"Content-Type": "application/json"})
    seen["raw"] = [raw.url.partition(":")[0], raw.status_code, len(raw.json()["predictions"])]

    endpoint.deploy(second, deployed_model_display_name="green", traffic_percentage=20)
    blue, green = sorted(endpoint.list_models(), key=lambda deployed: deployed.display_name)
    seen["access_logs"] = [blue.enable_access_logging, green.enable_access_logging]
    seen["split"] = [endpoint.traffic_split[blue.id], endpoint.traffic_split[green.id]]
    endpoint.update(traffic_split={blue.id: 0, green.id: 100})
    seen["listed"] = [one.name for one in aiplatform.Endpoint.list(filter='display_name="Photos" AND labels.team=a')]
    seen["endpoint"] = endpoint.name
    try:
        first.delete()
    except (FailedPrecondition, GoogleAPICallError) as error:
        seen["refused"] = error.code
    endpoint.undeploy(blue.id)
    seen["left"] = endpoint.traffic_split == {green.id: 100}

    # What cannot be deployed ends with its cause, or after its time, and leaves nothing.
    nothing = aiplatform.Model.upload(
        display_name="Nothing", artifact_uri="gs://models/nothing", serving_container_image_uri=IMAGE
    )
    large = aiplatform.Model.upload(
        display_name="Large",
        artifact_uri="gs://models/photos/1",
        serving_container_image_uri=IMAGE,
        serving_container_deployment_timeout=15,
    )
    seen["failed"] = []
    for model, machine in ((nothing, None), (large, "n1-standard-16")):
        try:
            endpoint.deploy(model, traffic_percentage=50, machine_type=machine)
        except GoogleAPICallError as error:
            seen["failed"].append([error.grpc_status_code.name, error.message])
    seen["left_by_failures"] = [endpoint.traffic_split == {green.id: 100}, len(endpoint.list_models())]
    nothing.delete()
    large.delete()

    job = first.batch_predict(
        job_display_name="Nightly",
        instances_format="jsonl",
        gcs_source="gs://sdk/lines.jsonl",
        gcs_destination_prefix="gs://sdk/out",
        model_parameters={"maxPredictions": 1},
        starting_replica_count=1,
        machine_type="n1-standard-2",
    )
    seen["job"] = [job.state.name, job.completion_stats.successful_count, job.completion_stats.failed_count]
    lines = [
        line
        for blob in job.iter_outputs()
        if "predictions_" in blob.name
        for line in blob.download_as_text().splitlines()
    ]
    seen["output"] = [json.loads(line)["prediction"]["displayNames"] for line in lines]

    job.delete()
    endpoint.delete(force=True)
    first.delete()
    seen["rest"] = [*aiplatform.Endpoint.list(), *aiplatform.Model.list(), *aiplatform.BatchPredictionJob.list()]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
