"""Vertex AI's own description of its messages: requests may have each field of it, answers have no other."""

import json
from pathlib import Path

import googleapiclient
import pytest
from pierhead_api import endpoints, jobs, machines
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
from pierhead_api.wire import ACCELERATOR_TYPES, BETA_ONLY, JOB_STATES

from tests.unit.api.conftest import BETA, PARENT, PLACE, make_deployed_model, make_endpoint, make_job, make_model
from tests.unit.api.test_jobs import STATUS

DOCUMENTS = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
SCHEMAS = {
    name: schema
    for version in ("v1beta1", "v1")
    for name, schema in json.loads((DOCUMENTS / f"aiplatform.{version}.json").read_text())["schemas"].items()
}
PREFIX = "GoogleCloudAiplatformV1"
BETA_PREFIX = f"{PREFIX}beta1"
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
    "BatchPredictionJobInputConfig": jobs.InputConfig,
    "BatchPredictionJobInstanceConfig": jobs.InstanceConfig,
    "BatchPredictionJobOutputConfig": jobs.OutputConfig,
    "ManualBatchTuningParameters": jobs.TuningParameters,
    "AutomaticResources": machines.AutomaticResources,
    "AutoscalingMetricSpec": machines.AutoscalingMetricSpec,
    "ReservationAffinity": machines.ReservationAffinity,
    "ClientConnectionConfig": endpoints.ClientConnectionConfig,
    "PredictRequestResponseLoggingConfig": endpoints.LoggingConfig,
}
BETA_REQUESTS = {
    **REQUESTS,
    "DedicatedResourcesScaleToZeroSpec": machines.ScaleToZeroSpec,
    "FlexStart": machines.FlexStart,
    "RolloutOptions": endpoints.RolloutOptions,
}
# What requests may have, too: names that are in the path; and what later clients send, or other ones.
MORE = {
    "DeployModelRequest": {"endpoint"},
    "UndeployModelRequest": {"endpoint"},
    "MutateDeployedModelRequest": {"endpoint"},
    "MergeVersionAliasesRequest": {"name"},
    "UploadModelRequest": {"parent", "isDefaultVersion"},
    "Model": {"isDefaultVersion"},
    "ReservationAffinity": {"useReservationPool"},
}


@pytest.mark.parametrize(("schema", "kind"), REQUESTS.items())
def test_requests_of_v1_may_have_every_field_and_none_of_v1beta1(schema, kind):
    known = {field.alias for field in kind.model_fields.values() if BETA_ONLY not in field.metadata}
    assert set(SCHEMAS[PREFIX + schema]["properties"]) | MORE.get(schema, set()) == known


@pytest.mark.parametrize(("schema", "kind"), BETA_REQUESTS.items())
def test_requests_of_v1beta1_may_have_every_field(schema, kind):
    known = {field.alias for field in kind.model_fields.values()}
    assert set(SCHEMAS[BETA_PREFIX + schema]["properties"]) <= known


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
        rolloutOptions={"maxSurgeReplicas": 1, "maxUnavailablePercentage": 10},
        enableAccessLogging=True,
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


def _make_answers(place):
    job = make_job(modelParameters={"a": 1}, disableContainerLogging=True)
    return {
        "Endpoint": to_endpoint(make_endpoint(description="d"), [DEPLOYED], place),
        "Model": to_model(make_model(description="d"), "2", [make_deployed_model(modelVersion="2")], place),
        "BatchPredictionJob": to_job({**job, "status": STATUS}, "Photos", place),
    }


ANSWERS = {
    prefix + schema: answer
    for prefix, place in ((PREFIX, PLACE), (BETA_PREFIX, BETA))
    for schema, answer in _make_answers(place).items()
}


@pytest.mark.parametrize(("schema", "answer"), ANSWERS.items())
def test_answers_have_known_fields_alone(schema, answer):
    assert list(_strays(answer, {"$ref": schema})) == []


def test_answers_of_v1beta1_have_its_fields():
    [beta], [other] = (ANSWERS[f"{prefix}Endpoint"]["deployedModels"] for prefix in (BETA_PREFIX, PREFIX))
    assert beta.keys() - other.keys() == {"rolloutOptions", "enableContainerLogging"}


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
