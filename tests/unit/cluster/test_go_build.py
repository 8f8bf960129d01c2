"""What decides a build, and what of the caller's environment reaches it."""

import dataclasses
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
