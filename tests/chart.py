"""The chart, by the real Helm: rendered, and as the release that is installed."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.kube import Kubectl, Manifest

CHART = str(Path(__file__).parents[1] / "charts" / "pierhead")
_RELEASE = ("pierhead", "--namespace", "pierhead-system")


def helm_template(*settings: str, namespace: str = "default", values: Manifest | None = None) -> tuple[int, str, str]:
    """Helm's exit status, what it rendered, and what it complains of; a setting, NAME=VALUE, counts before `values`."""
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    done = subprocess.run(
        ["helm", "template", "pierhead", CHART, "--namespace", namespace, "--values", "-", *arguments],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def render(*settings: str, namespace: str = "default", values: Manifest | None = None) -> list[Manifest]:
    """All that an installation with these settings has."""
    status, stdout, stderr = helm_template(*settings, namespace=namespace, values=values)
    assert status == 0, stderr
    return [document for document in yaml.safe_load_all(stdout) if document]


def try_install(kubectl: Kubectl, documents: list[Manifest]) -> list[str]:
    """What the API server says of each document, by a server-side dry run; what is in `default` is in kubectl's."""
    for document in documents:
        if document["metadata"].get("namespace") == "default" and document["kind"] not in ("Role", "RoleBinding"):
            document["metadata"]["namespace"] = kubectl.namespace
    arguments = ("--server-side", "--force-conflicts", "--dry-run=server", "--filename", "-")
    return kubectl.in_any_namespace("apply", *arguments, stdin=yaml.safe_dump_all(documents)).splitlines()


@contextmanager
def upgraded(*settings: str) -> Iterator[None]:
    """The installed release with other values meanwhile; as it was afterwards, whatever happened."""
    before = json.loads(_helm("status", *_RELEASE, "--output", "json"))["version"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    try:
        _helm("upgrade", _RELEASE[0], CHART, *_RELEASE[1:], "--reuse-values", "--wait", "--timeout", "2m", *arguments)
        yield
    finally:
        _helm("rollback", _RELEASE[0], str(before), *_RELEASE[1:], "--wait", "--timeout", "2m")


def _helm(*arguments: str) -> str:
    return subprocess.run(["helm", *arguments], stdout=subprocess.PIPE, text=True, timeout=180, check=True).stdout
