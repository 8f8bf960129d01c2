"""`python -m cluster`: a real one-node Kubernetes on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import Annotated, NoReturn

import typer

from cluster import down as cluster_down
from cluster import gpus, images, install, kind, quickstart, settings
from cluster import up as cluster_up
from cluster.errors import ClusterError
from cluster.progress import say
from cluster.settings import Paths

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def up(
    metrics: Annotated[bool, typer.Option(help="With figures for `kubectl top` and the autoscaler.")] = False,
    bare: Annotated[bool, typer.Option(help="Without a gateway and the Gateway API.")] = False,
) -> None:
    """Start the cluster, building what is not cached; harmless when it is up."""
    cluster = cluster_up.up(metrics=metrics, bare=bare)
    say(f"storage {cluster.storage_url}" if bare else f"gateway {cluster.gateway_url}, storage {cluster.storage_url}")
    say('to use it from this shell: eval "$(python -m cluster env)"')


@app.command()
def down(purge: Annotated[bool, typer.Option(help="Remove binaries and images too.")] = False) -> None:
    """End the cluster and leave nothing of it running; binaries and images stay for the next one."""
    cluster_down.down(purge=purge)


@app.command()
def env() -> None:
    """Print what a shell needs to use the cluster, for `eval`."""
    print("\n".join(make_exports(cluster_up.describe(Paths.from_environment()), os.environ.get("PATH", ""))))


@app.command(name="gpus")
def advertise_gpus(count: Annotated[int, typer.Argument(min=0)]) -> None:
    """Make the node offer COUNT GPUs (nvidia.com/gpu); 0 takes them away."""
    gpus.advertise(count)


@app.command(name="images")
def build_images(
    verify: Annotated[bool, typer.Option(help="The operator's once more, from nothing: it must be the same.")] = False,
) -> None:
    """Build and push the operator's image and both of the server from the working tree; print their references.

    With CLUSTER=current, those that kind's quickstart needs, loaded into your kubeconfig's cluster.
    """
    if os.environ.get("CLUSTER") == "current":
        kind.load(os.environ)
        return
    print(f"operator {images.build_operator()}")
    print(f"server {images.build_server()}")
    print(f"server-openvino {images.build_server_openvino()}")
    if verify:
        print(f"operator {images.verify_operator()}, twice the same")


@app.command(name="install")
def install_pierhead() -> None:
    """Bring the working tree's Pierhead into the cluster, which is started if it is not up."""
    install.install(install.find_local())


@app.command(name="quickstart")
def run_quickstart() -> None:
    """From nothing to a classifier that answers photographs; CLUSTER=current uses your kubeconfig's cluster."""
    if os.environ.get("CLUSTER") == "current":
        quickstart.run_current(os.environ)
    else:
        quickstart.run_local()


@app.command(context_settings={"ignore_unknown_options": True})
def run(command: list[str]) -> None:
    """Run COMMAND against a cluster with the working tree's Pierhead; one that was not up is ended afterwards."""
    was_up = cluster_up.is_up(Paths.from_environment())
    try:
        target = install.find_local(metrics=True)
        install.install(target)
        install.upload_artifacts(settings.STORAGE_URL)
        status = subprocess.run(command, env=target.environment, check=False).returncode
    finally:
        if not was_up:
            cluster_down.down()
    sys.exit(status)


def make_exports(cluster: cluster_up.Cluster, path: str) -> list[str]:
    """Lines for a POSIX shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in cluster.make_variables(path).items()]


def main() -> None:
    # `ip`, `nft` and `debootstrap` live where a plain `su` does not look.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except ClusterError as error:
        sys.exit(f"error: {error}")


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
