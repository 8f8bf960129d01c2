"""What decides a build, and what of the caller's environment reaches it."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from cluster import go_build, settings
from cluster.go_build import COREDNS, KUBE, Tool
from cluster.settings import Paths


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("go.etcd.io/etcd/server/v3", "server"),
        ("helm.sh/helm/v4/cmd/helm", "helm"),
        ("example.org/vault", "vault"),
    ],
)
def test_binary_name_is_go_builds(package, name):
    assert go_build.binary_name(package) == name


def test_key_is_stable():
    assert KUBE.key == dataclasses.replace(KUBE).key


@pytest.mark.parametrize(
    "change",
    [
        {"version": "9.9.9"},
        {"binaries": {"kubectl": "k8s.io/kubernetes/cmd/kubectl"}},
        {"variables": {}},
        {"files": {}},
        {"tags": ("netgo",)},
    ],
)
def test_key_changes_with_what_is_built(change):
    assert dataclasses.replace(KUBE, **change).key != KUBE.key


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "main.go"])
def test_key_changes_with_every_file_of_the_module(monkeypatch, tmp_path, name):
    shutil.copytree(COREDNS.module, tmp_path / "gomods/coredns")
    monkeypatch.setattr(settings, "SOURCE", tmp_path)
    before = COREDNS.key
    with (tmp_path / "gomods/coredns" / name).open("a") as file:
        file.write("\n")
    assert COREDNS.key != before


def test_missing_keeps_the_order_and_drops_what_is_cached(tmp_path):
    paths = Paths(tmp_path)
    tools = [KUBE, COREDNS]
    assert go_build.missing(paths, tools) == tools
    KUBE.folder(paths).mkdir(parents=True)
    assert go_build.missing(paths, tools) == [COREDNS]


def test_link_flags_set_the_version():
    tool = Tool("t", "1", {"t": "example.org/t"}, variables={"example.org/t.version": "v1"})
    assert tool.link_flags == "-s -w -X example.org/t.version=v1"


def test_environment_keeps_where_modules_come_from_and_drops_what_changes_the_result():
    caller = {
        "GOPROXY": "http://mirror.invalid",
        "GONOSUMDB": "*",
        "HTTPS_PROXY": "http://proxy.invalid",
        "GOFLAGS": "-race",
        "GOARCH": "mips",
        "GOTOOLCHAIN": "go9.9.9",
        "GOEXPERIMENT": "x",
        "CGO_ENABLED": "1",
        "CGO_CFLAGS": "-O0",
    }
    environment = go_build.go_environment(caller, Paths(Path("/c")))
    kept = {name: caller[name] for name in ("GOPROXY", "GONOSUMDB", "HTTPS_PROXY")}
    assert environment.items() >= kept.items()
    assert not {"GOARCH", "GOEXPERIMENT", "CGO_CFLAGS"} & environment.keys()
    assert environment["CGO_ENABLED"] == "0"
    assert environment["GOTOOLCHAIN"] == "local"
    assert environment["GOFLAGS"].split()[:3] == ["-trimpath", "-buildvcs=false", "-mod=readonly"]
    assert environment["GOMODCACHE"] == "/c/go/mod"


def test_go_caches_are_kept_while_another_process_builds(tmp_path):
    paths = Paths(tmp_path)
    paths.go.mkdir()
    with go_build.locks.shared(paths.locks / "go"):
        go_build.remove_go_caches(paths)
        assert paths.go.exists()
    go_build.remove_go_caches(paths)
    assert not paths.go.exists()


# Makes what `go build -o FOLDER/ PACKAGE...` would, and tells what it was asked for.
FAKE_GO = """#!/bin/sh
echo "$*" >> "$(dirname "$0")/asked"
case "$1" in env) echo go99.0.0; exit;; build) ;; *) echo "$(dirname "$0")"; exit;; esac
while [ "$1" != -o ]; do shift; done
mkdir -p "$2"; folder=$2; shift 2
for package in "$@"; do echo "$package" > "$folder/$(basename "$package")"; done
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Reads the command lines of a Go that builds nothing."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "go").write_text(FAKE_GO)
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return lambda: [line for line in (folder / "asked").read_text().splitlines() if line.startswith("build")]


def _make_tool(name, **binaries):
    return Tool(name, "1", binaries or {name: f"example.org/{name}"}, seconds=90)


@pytest.fixture
def coredns_module(monkeypatch):
    """Any tool has one that is there."""
    monkeypatch.setattr(Tool, "module", COREDNS.module)


def test_builds_keep_their_order_and_say_how_long_they_take(tmp_path, asked, coredns_module, capsys):
    go_build.build(Paths(tmp_path), [_make_tool("b"), _make_tool("a")])
    assert [line.rpartition("/")[2] for line in asked()] == ["b", "a"]
    said = capsys.readouterr().err
    assert "build b 1, 1 of 2; about 2 minutes on two cores … (log: " in said
    assert "build a 1, 2 of 2; about 2 minutes on two cores … (log: " in said


@pytest.mark.parametrize("more_to_come", [True, False])
def test_go_caches_serve_the_builds_that_follow(tmp_path, asked, coredns_module, more_to_come):
    paths = Paths(tmp_path)
    paths.go.mkdir()
    go_build.build(paths, [_make_tool("a")], more_to_come=more_to_come)
    assert paths.go.exists() == more_to_come


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "less than a minute"), (29, "less than a minute"), (40, "about a minute"), (400, "about 7 minutes")],
)
def test_estimates_are_rough(seconds, text):
    assert go_build.describe_seconds(seconds) == text


def test_every_tool_of_the_cluster_has_an_estimate():
    assert all(tool.seconds for tool in go_build.TOOLS)


def test_first_predictions_need_no_enforcer_of_network_policies():
    assert [tool.name for tool in go_build.TOOLS if tool not in go_build.FIRST] == ["kube-router"]
