"""The golden routes, as a real API server takes them."""

import json
from pathlib import Path

import yaml

GOLDEN = Path(__file__).parents[1] / "golden"


def find_routes(pattern, api_group):
    """The golden manifests of an API group, each with a name for its test."""
    return {
        f"{file.parent.name}-{manifest['kind']}-{manifest['metadata']['name']}": manifest
        for file in sorted(GOLDEN.glob(f"{pattern}/objects.yaml"))
        for manifest in yaml.safe_load_all(file.read_text())
        if manifest["apiVersion"].startswith(f"{api_group}/")
    }


def try_apply(kubectl, manifest):
    """What would be stored, by a server-side dry run in kubectl's namespace that takes no unknown field."""
    moved = {**manifest, "metadata": {**manifest["metadata"], "namespace": kubectl.namespace}}
    arguments = ("--server-side", "--dry-run=server", "--validate=strict", "--output", "json", "--filename", "-")
    return json.loads(kubectl("apply", *arguments, stdin=json.dumps(moved)))
