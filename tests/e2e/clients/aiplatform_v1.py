"""The life of a model as a user of AI Platform Prediction writes it, by google-api-python-client's `ml` v1.

`python aiplatform_v1.py ADDRESS PROJECT PICTURE` with the token in TOKEN. Prints what it sees as one line of JSON.
"""

import base64
import json
import os
import sys
import time
from pathlib import Path

from google.oauth2.credentials import Credentials
from googleapiclient import discovery
from googleapiclient.errors import HttpError


def wait(service, operation, deadline):
    while not operation.get("done"):
        assert time.monotonic() < deadline, operation
        time.sleep(1)
        operation = service.projects().operations().get(name=operation["name"]).execute()
    assert "error" not in operation, operation
    return operation


def main(address, project, picture):
    service = discovery.build(
        "ml",
        "v1",
        static_discovery=True,
        credentials=Credentials(os.environ["TOKEN"]),
        client_options={"api_endpoint": address},
    )
    deadline = time.monotonic() + 240
    seen = {}
    models = service.projects().models()
    parent, name = f"projects/{project}", f"projects/{project}/models/Legacy_photos"
    versioned = f"{name}/versions/v1_2"
    models.create(parent=parent, body={"name": "Legacy_photos", "regions": ["us-central1"]}).execute()
    version = {"name": "v1_2", "deploymentUri": "gs://models/photos/1", "framework": "SCIKIT_LEARN"}
    wait(service, models.versions().create(parent=name, body=version).execute(), deadline)
    model = models.get(name=name).execute()
    seen["default"] = model["defaultVersion"]["name"].removeprefix(f"{parent}/")
    seen["listed"] = [one["name"] for one in models.list(parent=parent).execute()["models"]] == [name]

    described = {"description": "of old", "etag": model["etag"]}
    wait(service, models.patch(name=name, updateMask="description", body=described).execute(), deadline)
    try:
        models.patch(name=name, updateMask="description", body=described).execute()
    except HttpError as error:
        seen["stale"] = error.status_code
    models.versions().setDefault(name=versioned, body={}).execute()

    content = base64.b64encode(Path(picture).read_bytes()).decode()
    body = {"instances": [{"image_bytes": {"b64": content}}]}
    seen["predictions"] = len(service.projects().predict(name=name, body=body).execute()["predictions"])
    seen["by_version"] = len(service.projects().predict(name=versioned, body=body).execute()["predictions"])

    wait(service, models.versions().delete(name=versioned).execute(), deadline)
    wait(service, models.delete(name=name).execute(), deadline)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
