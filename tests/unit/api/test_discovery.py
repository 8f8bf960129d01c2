"""Vertex AI's own description of its messages: requests may have each field of it, answers have no other."""

import json
from pathlib import Path

import googleapiclient
import pytest
from pierhead_api.endpoints import (
    DeployedModelBody,
    DeployModelBody,
    EndpointBody,
    MutateDeployedModelBody,
    UndeployModelBody,
    to_endpoint,
)
from pierhead_api.jobs import JobBody, to_job
from pierhead_api.listing import ListRequest
from pierhead_api.machines import BatchDedicatedResources, DedicatedResources, MachineSpec
from pierhead_api.models import ContainerSpec, MergeVersionAliasesBody, ModelBody, UploadModelBody, to_model
from pierhead_api.services import EndpointService, OperationService
from pierhead_api.wire import ACCELERATOR_TYPES, JOB_STATES

from tests.unit.api.conftest import PARENT, PLACE, make_deployed_model, make_endpoint, make_job, make_model
from tests.unit.api.test_jobs import STATUS

DOCUMENT = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents" / "aiplatform.v1.json"
SCHEMAS = json.loads(DOCUMENT.read_text())["schemas"]
PREFIX = "GoogleCloudAiplatformV1"
# Of AI Platform's time, and of clients' expectations; the discovery document of v1 has it not.
BESIDE = {"modelDisplayName"}

REQUESTS = {
    "Endpoint": EndpointBody,
    "DeployedModel": DeployedModelBody,
    "DeployModelRequest": DeployModelBody,
    "UndeployModelRequest": UndeployModelBody,
    "MutateDeployedModelRequest": MutateDeployedModelBody,
    "DedicatedResources": DedicatedResources,
    "BatchDedicatedResources": BatchDedicatedResources,
    "MachineSpec": MachineSpec,
    "Model": ModelBody,
    "ModelContainerSpec": ContainerSpec,
    "UploadModelRequest": UploadModelBody,
    "MergeVersionAliasesRequest": MergeVersionAliasesBody,
    "BatchPredictionJob": JobBody,
}


@pytest.mark.parametrize(("schema", "kind"), REQUESTS.items())
def test_requests_may_have_every_field(schema, kind):
    known = {field.alias for field in kind.model_fields.values()}
    assert set(SCHEMAS[PREFIX + schema]["properties"]) <= known


def _strays(value, schema, path=""):
    """The fields of an answer that its schema has not, or that are of another type there."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"]]
    properties = schema.get("properties")
    if isinstance(value, dict) and properties is not None:
        for name, inner in value.items():
            if name in properties:
                yield from _strays(inner, properties[name], f"{path}.{name}")
            elif name not in BESIDE:
                yield f"{path}.{name}"
    elif isinstance(value, list):
        for inner in value:
            yield from _strays(inner, schema["items"], f"{path}[]")
    elif not _fits(value, schema):
        yield f"{path}: {value!r}"


def _fits(value, schema):
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "any": object}
    if schema.get("enum") and value not in schema["enum"]:
        return False
    return isinstance(value, types[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))


DEPLOYED = {
    **make_deployed_model(
        dedicatedResources={
            "machineSpec": {"acceleratorType": "NVIDIA_L4", "acceleratorCount": 1},
            "autoscalingMetricSpecs": [{"metricName": "cpu/utilization"}],
        },
        serviceAccount="reader",
    ),
    "status": {
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "Progressing",
                "message": "m",
                "lastTransitionTime": "2026-11-22T11:00:00Z",
            }
        ]
    },
}
ANSWERS = {
    "Endpoint": to_endpoint(make_endpoint(description="d"), [DEPLOYED], PLACE),
    "Model": to_model(make_model(description="d"), "2", [make_deployed_model(modelVersion="2")], PLACE),
    "BatchPredictionJob": to_job({**make_job(modelParameters={"a": 1}), "status": STATUS}, "Photos", PLACE),
}


@pytest.mark.parametrize(("schema", "answer"), ANSWERS.items())
def test_answers_have_known_fields_alone(schema, answer):
    assert list(_strays(answer, {"$ref": PREFIX + schema})) == []


async def test_operations_have_known_fields_alone(session, cluster):
    cluster.add(make_endpoint())
    cluster.add(make_model())
    body = {"deployedModel": {"model": f"{PARENT}/models/photos"}}
    await EndpointService(session).deploy_model(PLACE, "7", body)
    cluster.judge("DeployedModel", "1000000001", reason="ImagePullFailed")
    [waiting] = (await OperationService(session).list(PLACE, "", ListRequest()))["operations"]
    cluster.finish(waiting["name"])
    [done] = (await OperationService(session).list(PLACE, "", ListRequest()))["operations"]
    for answer in (waiting, done):
        assert list(_strays(answer, {"$ref": "GoogleLongrunningOperation"})) == []
        metadata = {name: value for name, value in answer["metadata"].items() if name != "@type"}
        assert list(_strays(metadata, {"$ref": f"{PREFIX}DeployModelOperationMetadata"})) == []
    deployed = done["response"]["deployedModel"]
    assert list(_strays(deployed, {"$ref": f"{PREFIX}DeployedModel"})) == []


def test_enums_are_google_s():
    machine = SCHEMAS[f"{PREFIX}MachineSpec"]["properties"]["acceleratorType"]["enum"]
    assert {*ACCELERATOR_TYPES.values(), "ACCELERATOR_TYPE_UNSPECIFIED"} == set(machine)
    assert set(JOB_STATES.values()) <= set(SCHEMAS[f"{PREFIX}BatchPredictionJob"]["properties"]["state"]["enum"])
