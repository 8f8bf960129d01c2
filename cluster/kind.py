"""Pierhead's images for a cluster of kind's: built by Docker or by buildah, and loaded into its nodes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import commands, images, settings
from cluster.errors import ClusterError
from cluster.progress import step
from cluster.settings import Paths

# Of the servers the small one: PyTorch's, of 6 GB, takes longer to load than all the rest.
IMAGES = ("operator", "server-openvino")
BUILDERS = ("docker", "buildah")
_CONTEXT = "kind-"  # kind's contexts are called this and the cluster's name


def find_cluster(environment: Mapping[str, str]) -> str | None:
    """The name of the cluster of kind's that the kubeconfig's context leads to; None if it is none of kind's."""
    context = commands.output(["kubectl", "config", "view", "--output=jsonpath={.current-context}"], env=environment)
    return context.removeprefix(_CONTEXT) if context.startswith(_CONTEXT) else None


def find_reference(name: str) -> str:
    """What the image of the working tree is called there: of another tree it would be another tag."""
    return f"localhost/pierhead/{name}:{images.make_pierhead_image(name).key}"


def make_variables() -> dict[str, str]:
    """What `CLUSTER=current` asks for: the images that `load` brings."""
    return {
        "PIERHEAD_OPERATOR_IMAGE": find_reference("operator"),
        "PIERHEAD_SERVER_IMAGE": find_reference("server-openvino"),
    }


def load(environment: Mapping[str, str]) -> None:
    """Builds the images and loads them into the cluster's nodes.

    Raises ClusterError where the kubeconfig's cluster is none of kind's, something is not installed, or fails.
    """
    cluster = find_cluster(environment)
    if cluster is None:
        raise ClusterError("the kubeconfig's cluster is none of kind's: push the images as docs/install.md has it")
    path = environment.get("PATH")
    builder = next((name for name in BUILDERS if shutil.which(name, path=path)), None)
    if builder is None:
        raise ClusterError(f"neither {' nor '.join(BUILDERS)} is on PATH")
    for name in IMAGES:
        with step(f"image {name}, by {builder}"):
            _run(make_build(builder, name), environment, name)
    with step(f"kind load, into {cluster}"):
        _load(builder, cluster, environment)


def make_build(builder: str, name: str) -> list[str]:
    """The command that builds one of the images, with its base from Docker Hub."""
    dockerfile, target = images.TARGETS.get(name, (name, None))
    stage = [f"--target={target}"] if target else []
    file = settings.REPOSITORY / f"Dockerfile.{dockerfile}"
    return [builder, "build", f"--file={file}", *stage, f"--tag={find_reference(name)}", str(settings.REPOSITORY)]


def _load(builder: str, cluster: str, environment: Mapping[str, str]) -> None:
    references = [find_reference(name) for name in IMAGES]
    if builder == "docker":
        _run(["kind", "load", "docker-image", f"--name={cluster}", *references], environment, "load")
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, reference in enumerate(references):
            archive = Path(folder) / f"{number}.tar"
            _run(["buildah", "push", reference, f"docker-archive:{archive}:{reference}"], environment, "load")
            _run(["kind", "load", "image-archive", f"--name={cluster}", str(archive)], environment, "load")


def _run(argv: Sequence[str], environment: Mapping[str, str], what: str) -> None:
    commands.run(argv, log=Paths.from_environment(environment).log(f"kind-{what}"), env=environment, timeout=3600)
