"""The command line."""

import subprocess
from pathlib import Path

import pytest

from cluster import __main__, commands
from cluster.errors import ClusterError
from cluster.up import Cluster


def test_exports_survive_a_shell():
    cluster = Cluster(
        Path("/a b/$x/kubeconfig"), "http://g", Path("/ca"), "http://s", Path("/k 1/kubectl"), Path("/h/helm")
    )
    script = "\n".join([*__main__.make_exports(cluster, "/bin:/usr/bin"), 'echo "$KUBECONFIG $PIERHEAD_URL $PATH"'])
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "/a b/$x/kubeconfig http://g /k 1:/h:/bin:/usr/bin\n"


def test_a_failed_command_names_its_log_and_shows_its_end(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ClusterError, match=rf"(?s)exit status 3\); see {log}.*no such mirror"):
        commands.run(["sh", "-c", "echo no such mirror; exit 3"], log=log)


def test_a_slow_command_is_ended_with_its_children(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ClusterError, match="was not done after 0 s"):
        commands.run(["sh", "-c", "sleep 60 & wait"], log=log, timeout=0.2)


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ClusterError, match="`no-such-program` is not installed"):
        commands.run(["no-such-program"], log=tmp_path / "log")
    with pytest.raises(ClusterError, match="`no-such-program` is not installed"):
        commands.output(["no-such-program"])
    assert not commands.succeeds(["no-such-program"])
