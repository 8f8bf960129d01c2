"""Objects in Cloud Storage, or in an emulator of it: what the example's scripts and the quickstart need of it."""

import base64
import hashlib
import os
from pathlib import Path
from urllib.parse import quote

import httpx


def connect(emulator: str | None = None) -> httpx.Client:
    """Cloud Storage's JSON API: the emulator's, which STORAGE_EMULATOR_HOST names if nobody does, else Google's own.

    For Google's, GOOGLE_OAUTH_ACCESS_TOKEN holds a token, such as `gcloud auth print-access-token` prints.
    """
    if emulator := emulator or os.environ.get("STORAGE_EMULATOR_HOST"):
        return httpx.Client(base_url=emulator if "://" in emulator else f"http://{emulator}", timeout=60)
    token = os.environ["GOOGLE_OAUTH_ACCESS_TOKEN"]
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url="https://storage.googleapis.com", headers=headers, timeout=60)


def upload(folder: Path, destination: str) -> None:
    """Put the files of `folder` under `destination`, a `gs://bucket/prefix`, where they differ from what is there."""
    with connect() as client:
        bucket, _, prefix = destination.removeprefix("gs://").partition("/")
        if client.get(f"/storage/v1/b/{bucket}").status_code == httpx.codes.NOT_FOUND:
            print(f"gs://{bucket}: creating the bucket")
            project = os.environ.get("GOOGLE_CLOUD_PROJECT", "pierhead")
            client.post("/storage/v1/b", params={"project": project}, json={"name": bucket}).raise_for_status()
        for path in sorted(folder.iterdir()):
            name = f"{prefix}/{path.name}".lstrip("/")
            content = path.read_bytes()
            if _stored_md5(client, bucket, name) == base64.b64encode(hashlib.md5(content).digest()).decode():  # noqa: S324
                print(f"gs://{bucket}/{name}: up to date")
                continue
            print(f"gs://{bucket}/{name}: uploading {len(content):,} bytes", flush=True)
            to = {"uploadType": "media", "name": name}
            client.post(f"/upload/storage/v1/b/{bucket}/o", params=to, content=content).raise_for_status()


def _stored_md5(client: httpx.Client, bucket: str, name: str) -> str | None:
    answer = client.get(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}")
    return None if answer.status_code == httpx.codes.NOT_FOUND else answer.raise_for_status().json()["md5Hash"]


def read(client: httpx.Client, uri: str) -> bytes:
    """The object that a `gs://bucket/name` names."""
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    answer = client.get(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}", params={"alt": "media"})
    return answer.raise_for_status().content
