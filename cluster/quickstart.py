"""The quickstart: from nothing to a classifier on a real Kubernetes that answers photographs through a real gateway."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from cluster import go_build, install, processes, settings
from cluster.errors import ClusterError
from cluster.install import Target
from cluster.progress import say, step
from cluster.settings import Paths

_EXAMPLE = settings.REPOSITORY / "examples" / "photos"
_BATCH = ("batchpredictionjob", "photographs", "--namespace", "default")
_READY_SECONDS = 900
_ROUNDS = 20


@dataclass(frozen=True)
class Answer:
    """What one prediction said of one photograph."""

    photograph: str
    display_name: str
    confidence: float
    deployed_model: str


@dataclass(frozen=True)
class Prediction:
    """What the batch prediction wrote of one photograph."""

    photograph: str
    classes: Sequence[str]  # the best first, each with its confidence


def run_local() -> None:
    """The quickstart on the cluster of this machine."""
    say("starting a real one-node Kubernetes on this machine")
    if missing := go_build.missing(Paths.from_environment(), go_build.FIRST):
        say(
            f"a first time builds {', '.join(tool.name for tool in missing)} from their sources: "
            f"{go_build.estimate(missing)} on two cores, and some two more to the first predictions"
        )
    target = install.find_local(first=True)
    install.install(target)
    run(target, settings.STORAGE_URL, local=True)
    install.complete_local()
    say("NetworkPolicies are enforced, and all of Pierhead's images are there")


def run_current(environment: Mapping[str, str]) -> None:
    """The quickstart on the cluster of the caller's kubeconfig."""
    target = install.find_current(environment)
    say(f"using the cluster {target.kubectl('config', 'current-context').strip()} of your kubeconfig")
    install.install_storage(target)
    install.install(target)
    with install.forward_storage(target) as storage_url:
        if target.gateway:
            run(target, storage_url, local=False)
            return
        with install.forward_api(target) as through_api:
            run(through_api, storage_url, local=False)


def run(target: Target, storage_url: str, *, local: bool) -> None:
    """The example on a cluster with Pierhead, whose storage answers this machine at `storage_url`."""
    install.upload_artifacts(storage_url)
    install.upload_photographs(storage_url)
    deploy(target)
    begin_batch(target)
    answers = predict_photographs(target)
    show(target, answers, read_predictions(storage_url, wait_batch(target)), local=local)


def deploy(target: Target) -> None:
    """Applies the example and waits until its endpoint serves with the split that it asks for."""
    with step(f"kubectl apply -f {_EXAMPLE.relative_to(settings.REPOSITORY)}/openvino.yaml"):
        target.kubectl("apply", "--namespace", "default", "--filename", str(_EXAMPLE / "openvino.yaml"))
    with step("waiting for both models to serve"):
        _wait_ready(target)
        _wait_answered(target)


def _wait_ready(target: Target) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    told = ""
    while True:
        causes = [cause for item in _list(target) if (cause := explain(item))]
        if not causes:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"not ready after {_READY_SECONDS} s:\n  " + "\n  ".join(causes))
        if (now := "; ".join(causes)) != told:
            say(f"  {now}")
            told = now
        time.sleep(1)


def _wait_answered(target: Target) -> None:
    # A gateway follows its route within a moment, and says nothing when it has.
    def answers() -> bool:
        # An empty request reaches a model server, and no model.
        answer = httpx.post(predict_url(target), json={}, headers=_make_headers(target), trust_env=False)
        return answer.status_code == httpx.codes.BAD_REQUEST

    processes.wait_until(f"{predict_url(target)} is answered by a model server", answers, 60)


def _list(target: Target) -> list[dict[str, object]]:
    text = target.kubectl("get", "deployedmodels,endpoints.pierhead.dev", "--namespace", "default", "--output", "json")
    items: list[dict[str, object]] = json.loads(text)["items"]
    return items


def explain(item: dict[str, object]) -> str:
    """Why a resource is not Ready as `kind name: reason`; empty where it is."""
    resource: dict[str, dict[str, object]] = item  # type: ignore[assignment]  # as Kubernetes has it
    name = f"{item['kind']} {resource['metadata']['name']}"
    conditions: list[dict[str, str]] = resource.get("status", {}).get("conditions", [])  # type: ignore[assignment]
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    if ready is None:
        return f"{name}: not looked at yet"
    return "" if ready["status"] == "True" else f"{name}: {ready['reason']}"


def predict_url(target: Target) -> str:
    return f"{target.url}/v1/projects/default/locations/local/endpoints/photos:predict"


def _make_headers(target: Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.token}"} if target.token else {}


def predict_photographs(target: Target) -> list[Answer]:
    """Sends each photograph a number of times; the answers in the order in which they came."""
    from examples.photos.photographs import photographs

    pictures = list(photographs())
    carrier = "gateway" if target.gateway else "API"
    what = f"sending {_ROUNDS} times {len(pictures)} photographs through the {carrier}"
    with step(what), httpx.Client(timeout=60, headers=_make_headers(target), trust_env=False) as client:
        return [_predict(client, predict_url(target), *picture) for _ in range(_ROUNDS) for picture in pictures]


def _predict(client: httpx.Client, url: str, name: str, content: bytes, mime_type: str) -> Answer:
    instance = {"content": base64.b64encode(content).decode(), "mimeType": mime_type}
    body = {"instances": [instance], "parameters": {"maxPredictions": 1}}
    response = client.post(url, json=body)
    if response.status_code != httpx.codes.OK:
        raise ClusterError(f"{url} answered {response.status_code} to {name}: {response.text[:500]}")
    answer = response.json()
    [prediction] = answer["predictions"]
    return Answer(name, prediction["displayNames"][0], prediction["confidences"][0], answer["deployedModelId"])


def begin_batch(target: Target) -> None:
    """Applies the example's BatchPredictionJob, which predicts the photographs in storage."""
    with step(f"kubectl apply -f {_EXAMPLE.relative_to(settings.REPOSITORY)}/batch.yaml"):
        # Of an earlier quickstart: a job runs once.
        target.kubectl("delete", *_BATCH, "--ignore-not-found")
        target.kubectl("apply", "--namespace", "default", "--filename", str(_EXAMPLE / "batch.yaml"))


def wait_batch(target: Target) -> str:
    """The file that the job has written. Raises ClusterError with the cause if it failed."""
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(json.loads(target.kubectl("get", *_BATCH, "--output", "json")).get("status", {}))
        return "endTime" in found

    with step("waiting for the batch prediction"):
        processes.wait_until("the batch prediction ends", ended, _READY_SECONDS)
    if found["state"] != "JOB_STATE_SUCCEEDED":
        raise ClusterError(f"{found['state']}: {found.get('error', {}).get('message', '')}")
    return f"{found['outputInfo']['gcsOutputDirectory']}/predictions_00001.jsonl"


def read_predictions(storage_url: str, uri: str) -> list[Prediction]:
    """The lines of a predictions file."""
    from examples.photos import storage

    with storage.connect(storage_url) as client:
        records = map(json.loads, storage.read(client, uri).splitlines())
        return [_read_record(record) for record in records]


def _read_record(record: dict[str, Any]) -> Prediction:
    name = record["instance"]["content"].rpartition("/")[2]
    classes = zip(record["prediction"]["displayNames"], record["prediction"]["confidences"], strict=True)
    return Prediction(name, tuple(f"{display_name} {confidence:.3f}" for display_name, confidence in classes))


def make_stored_table(predictions: Sequence[Prediction]) -> Table:
    """One row for each photograph in storage."""
    table = Table(title="what BatchPredictionJob photographs wrote")
    table.add_column("photograph")
    table.add_column("classes")
    for prediction in predictions:
        table.add_row(prediction.photograph, ", ".join(prediction.classes))
    return table


def make_table(answers: Sequence[Answer]) -> Table:
    """One row for each photograph and each DeployedModel that answered for it."""
    table = Table(title=f"{len(answers)} predictions of endpoint photos")
    for column in ("photograph", "top class", "confidence", "answered by", "times"):
        table.add_column(column, justify="right" if column in ("confidence", "times") else "left")
    for answer, times in sorted(Counter(answers).items(), key=lambda row: (row[0].photograph, row[0].deployed_model)):
        confidence = f"{answer.confidence:.3f}"
        table.add_row(answer.photograph, answer.display_name, confidence, answer.deployed_model, str(times))
    return table


def share(answers: Iterable[Answer]) -> str:
    """Who answered how many: `photos-1 80 of 100, photos-2 20 of 100`."""
    counts = Counter(answer.deployed_model for answer in answers)
    total = sum(counts.values())
    return ", ".join(f"{name} {count} of {total}" for name, count in sorted(counts.items()))


def make_hints(target: Target, local: bool) -> str:
    """What to do next, as lines for a shell."""
    python = os.path.relpath(sys.executable)
    lines = ["How to go on:", ""]
    if local:
        lines += [f'  eval "$({python} -m cluster env)"   # KUBECONFIG, PIERHEAD_URL, kubectl and helm on PATH']
    elif target.gateway:
        lines += [f"  export PIERHEAD_URL={target.url}"]
    else:
        lines += [f"  kubectl port-forward --namespace {install.NAMESPACE} service/{install.RELEASE}-api 8080:80 &"]
        lines += ["  export PIERHEAD_URL=http://localhost:8080"]
    token = "" if target.gateway else '--header "Authorization: Bearer $(kubectl create token client)" '
    lines += [
        "  kubectl get pierhead   # models, endpoints, deployed models and batch prediction jobs",
        "  kubectl patch endpoint.pierhead.dev photos --type merge --patch "
        """'{"spec": {"trafficSplit": {"photos-1": 50, "photos-2": 50}}}'""",
        f"  {python} examples/photos/request.py coffee.png | curl --json @- {token}"
        "$PIERHEAD_URL/v1/projects/default/locations/local/endpoints/photos:predict",
    ]
    if local:
        lines += ["  make cluster-down   # ends the cluster; what was built stays cached"]
    return "\n".join(lines)


def show(target: Target, answers: Sequence[Answer], stored: Sequence[Prediction], *, local: bool) -> None:
    """Prints the answers and how to go on."""
    console = Console(soft_wrap=False)
    console.print(make_table(answers))
    console.print(f"The split is 80/20; answered: {share(answers)}.", highlight=False)
    console.print()
    console.print(make_stored_table(stored))
    console.print()
    print(make_hints(target, local))
