"""Configurations, command lines and manifests: that they say what the rest relies on."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster import addons, components, config, gpus, kube, network, pki, remains, settings
from cluster.settings import Paths

PATHS = Paths(Path("/c"))


def test_containerd_keeps_images_and_pod_state_apart():
    parsed = tomllib.loads(config.make_containerd_config(PATHS, "r/pause:1"))
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert parsed["root"] == "/c/containerd"
    assert parsed["state"].startswith(str(settings.RUN))
    assert cri["sandbox_image"] == "r/pause:1"
    assert cri["containerd"]["runtimes"]["runc"]["options"]["Root"].startswith(str(settings.RUN))
    assert cri["netns_mounts_under_state_dir"] is True


def test_write_all_writes_what_the_components_name(tmp_path):
    paths = Paths(tmp_path)
    config.write_all(paths, "r/pause:1")
    made = [
        components.make_containerd(paths),
        components.make_controller_manager(paths),
        components.make_scheduler(paths),
        components.make_kubelet(paths),
        components.make_kube_proxy(paths),
        components.make_kube_router(paths),
    ]
    arguments = [part.partition("=")[2] or part for component in made for part in component.argv]
    named = {part for part in arguments if part.startswith(str(paths.config))}
    assert len(named) >= 6
    assert all(Path(part).exists() for part in named)
    assert json.loads((paths.config / "cni/10-pierhead.conflist").read_text())["name"] == config.NETWORK_NAME
    assert yaml.safe_load(paths.kubeconfig.read_text())["clusters"][0]["cluster"]["server"] == settings.API_URL


def test_the_apiserver_names_only_certificates_that_are_made():
    made = {f"/c/state/pki/{one.name}.{end}" for one in (*pki.AUTHORITIES, *pki.CERTIFICATES) for end in ("crt", "key")}
    made |= {"/c/state/pki/sa.pub", "/c/state/pki/sa.key"}
    values = [part.partition("=")[2] for part in components.make_apiserver(PATHS).argv]
    assert {value for value in values if value.startswith("/c/state/pki/")} <= made


def test_a_certificate_is_signed_by_its_authority():
    front = next(one for one in pki.CERTIFICATES if one.name == "front-proxy-client")
    argv = pki.certificate_command(front, Path("/p"))
    assert argv[argv.index("-CA") + 1] == "/p/front-proxy-ca.crt"
    assert "basicConstraints=critical,CA:false" in argv
    own = pki.certificate_command(pki.AUTHORITIES[0], Path("/p"))
    assert "-CA" not in own
    assert "basicConstraints=critical,CA:true" in own


@pytest.mark.parametrize(
    "name", ["coredns", "storage", "gateway", "kube-router", "metrics-server", "prometheus", "prometheus-adapter"]
)
def test_manifests_render_to_objects_that_pull_only_what_is_missing(name):
    objects = list(yaml.safe_load_all(addons.render(name, addons.make_values())))
    assert all(one["kind"] and one["metadata"]["name"] for one in objects)
    for one in objects:
        if one["kind"] == "Deployment":
            for container in one["spec"]["template"]["spec"]["containers"]:
                assert container["image"].startswith(f"{settings.REGISTRY}/pierhead/")
                assert container["imagePullPolicy"] == "IfNotPresent"


def _find(name, kind):
    objects = yaml.safe_load_all(addons.render(name, addons.make_values()))
    return next(one for one in objects if one["kind"] == kind)


def test_prometheus_scrapes_the_pods_that_serve():
    [job] = yaml.safe_load(_find("prometheus", "ConfigMap")["data"]["prometheus.yml"])["scrape_configs"]
    [[selector]] = [found["selectors"] for found in job["kubernetes_sd_configs"]]
    objects = yaml.safe_load_all((settings.REPOSITORY / "tests/golden/automatic/objects.yaml").read_text())
    pod = next(one for one in objects if one["kind"] == "Deployment")["spec"]["template"]
    key, _, values = selector["label"].partition(" in ")
    assert pod["metadata"]["labels"][key] in values.strip("()").split(", ")
    [port] = pod["spec"]["containers"][0]["ports"]
    assert port["name"] in job["relabel_configs"][0]["regex"].split("|")


def test_the_metrics_adapter_asks_prometheus():
    service = _find("prometheus", "Service")
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    [container] = _find("prometheus-adapter", "Deployment")["spec"]["template"]["spec"]["containers"]
    assert f"--prometheus-url=http://{name}.{service['metadata']['namespace']}.svc:{port}" in container["args"]


def test_the_ports_of_the_addresses_are_fixed():
    storage = list(yaml.safe_load_all(addons.render("storage", addons.make_values())))[-1]
    assert settings.STORAGE_URL.endswith(f":{storage['spec']['ports'][0]['nodePort']}")
    gateway = yaml.safe_load_all(addons.render("gateway", addons.make_values()))
    [proxy] = [one for one in gateway if (one["kind"], one["metadata"]["name"]) == ("EnvoyProxy", "pierhead-public")]
    service = proxy["spec"]["provider"]["kubernetes"]["envoyService"]
    assert settings.GATEWAY_URL.endswith(f":{service['patch']['value']['spec']['ports'][0]['nodePort']}")


def test_a_manifest_with_a_word_that_has_no_value_is_refused():
    with pytest.raises(KeyError):
        addons.render("storage", {})


def test_set_chart_version():
    chart = "name: x\nversion: v0.0.0-latest\nappVersion: \"latest\"\ndependencies:\n  - version: '0'\n"
    version = settings.ENVOY_GATEWAY_VERSION
    assert f'\nversion: v{version}\nappVersion: "v{version}"\n' in addons.set_chart_version(chart)
    assert "  - version: '0'\n" in addons.set_chart_version(chart)


@pytest.mark.parametrize(
    ("destination", "taken"),
    [
        ("default", False),
        ("192.0.2.0/24", False),
        ("10.244.0.0/16", True),
        ("10.99.0.7", True),
        ("10.0.0.0/8", True),
        ("10.97.0.0/16", False),
    ],
)
def test_find_overlaps(destination, taken):
    assert bool(network.find_overlaps([{"dst": destination, "dev": "eth0"}])) is taken


# As iptables-save tells of a table with rules of kube-router's and of somebody else.
SAVED = """\
# Generated by iptables-save
*filter
:INPUT ACCEPT [8:9]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-NWPLCY-COMMON - [0:0]
:KUBE-POD-FW-7HWWMVB5PX7QM2Q4 - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT
-A FORWARD -j DOCKER
-A KUBE-ROUTER-INPUT -d 10.244.0.8/32 -j KUBE-POD-FW-7HWWMVB5PX7QM2Q4
-A KUBE-POD-FW-7HWWMVB5PX7QM2Q4 -j KUBE-NWPLCY-COMMON
COMMIT
"""


def test_firewall_goes_and_other_rules_stay():
    assert network.make_undo(SAVED).splitlines() == [
        "*filter",
        '-D INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT',
        "-F KUBE-NWPLCY-COMMON",
        "-F KUBE-POD-FW-7HWWMVB5PX7QM2Q4",
        "-F KUBE-ROUTER-INPUT",
        "-X KUBE-NWPLCY-COMMON",
        "-X KUBE-POD-FW-7HWWMVB5PX7QM2Q4",
        "-X KUBE-ROUTER-INPUT",
        "COMMIT",
    ]


def test_without_a_firewall_nothing_is_undone():
    others = "\n".join(line for line in SAVED.splitlines() if "KUBE" not in line)
    assert network.make_undo(others) == ""
    assert network.make_undo("") == ""


@pytest.mark.parametrize(
    ("saved", "bare"),
    [
        ("", True),
        ("*filter\n:INPUT ACCEPT [8:9]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", True),
        ("*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", False),
        ("*filter\n:INPUT ACCEPT [8:9]\n:DOCKER - [0:0]\nCOMMIT\n", False),
        ("*filter\n:INPUT ACCEPT [8:9]\n-A INPUT -j DROP\nCOMMIT\n", False),
    ],
)
def test_is_bare(saved, bare):
    assert network.is_bare(saved) is bare


@pytest.mark.parametrize(
    ("has", "count", "operations"),
    [
        (False, 2, ["add", "add"]),
        (True, 1, ["add", "add"]),
        (True, 0, ["remove", "remove"]),
        (False, 0, []),
    ],
)
def test_gpu_patch(has, count, operations):
    resources = {"cpu": "2", **({"nvidia.com/gpu": "1"} if has else {})}
    patch = gpus.make_patch({"capacity": resources, "allocatable": resources}, count)
    assert [one["op"] for one in patch] == operations
    assert all(one["path"].endswith("/nvidia.com~1gpu") for one in patch)


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (None, False),
        ({}, False),
        ({"status": {"conditions": None}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
    ],
)
def test_is_true(found, held):
    assert kube.is_true(found, "Ready") is held


def test_shims_are_told_by_our_socket():
    ours = f"/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-address\0{config.CONTAINERD_SOCKET}\0"
    assert remains.is_our_shim(ours)
    assert not remains.is_our_shim(ours.replace(str(config.CONTAINERD_SOCKET), "/run/containerd/containerd.sock"))
    assert not remains.is_our_shim(f"vim\0{config.CONTAINERD_SOCKET}\0")
    assert not remains.is_our_shim("")


def test_find_mounts_takes_ours_and_the_innermost_first():
    mounts = "\n".join(
        [
            "proc /proc proc rw 0 0",
            "tmpfs /c/state/kubelet tmpfs rw 0 0",
            r"tmpfs /c/state/kubelet/a\040b tmpfs rw 0 0",
            "tmpfs /c/states tmpfs rw 0 0",
        ]
    )
    assert remains.find_mounts(mounts, [Path("/c/state")]) == [
        Path("/c/state/kubelet/a b"),
        Path("/c/state/kubelet"),
    ]
