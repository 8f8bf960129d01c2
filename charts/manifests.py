"""The chart with its defaults and images to be named, for who has no Helm: `python -m charts.manifests FILE`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

from cluster import go_build
from cluster.settings import Paths

NAMESPACE = "pierhead-system"
# No registry: nobody can own a name under .invalid (RFC 6761). Kustomize's `images` replaces it.
REGISTRY = "images.invalid"
_CHART = Path(__file__).parent / "pierhead"
_HEADER = f"""\
# Made from charts/pierhead by `make manifests`; edit that.
apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
"""
# Nobody has installed these with Helm, and Helm must not take them for its own.
_HELMS = re.compile(r"^ *(?:helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)


def render(helm: Path) -> str:
    """All manifests of an installation in its own namespace."""
    argv = [str(helm), "template", "pierhead", str(_CHART), "--namespace", NAMESPACE, "--no-hooks"]
    for name in ("operator", "server"):
        argv += ["--set", f"{name}.image={REGISTRY}/pierhead/{name}:{_find_version()}"]
    argv += ["--set", f"server.openvinoImage={REGISTRY}/pierhead/server-openvino:{_find_version()}"]
    text = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    return _HEADER + _HELMS.sub("", text)


def _find_version() -> str:
    version: str = yaml.safe_load((_CHART / "Chart.yaml").read_text())["appVersion"]
    return version


def main(file: str) -> None:
    paths = Paths.from_environment()
    go_build.build(paths, [go_build.HELM])
    Path(file).write_text(render(go_build.HELM.binary(paths, "helm")))
    print(file)


if __name__ == "__main__":
    main(sys.argv[1])
