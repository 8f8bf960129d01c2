"""The chart, by the real Helm: rendered, and as the release that is installed.

`python -m tests.chart` renders it anew for each values file of tests/golden/chart: what changed shows in the diff.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from tests.kube import OPERATOR, SYSTEM, Kubectl, Manifest, make_list, scale_operator, wait_operator

CHART = str(Path(__file__).parents[1] / "charts" / "pierhead")
GOLDEN = Path(__file__).parent / "golden" / "chart"
CASES = sorted(folder.name for folder in GOLDEN.iterdir())
RELEASE = ("pierhead", "--namespace", "pierhead-system")
# What each installation has to name, and most tests do not care about.
IMAGES = {name: f"registry.example.com/pierhead/{name}:0" for name in ("operator", "server")}


def helm_template(
    *settings: str, namespace: str = "default", values: Manifest | None = None, chart: str = CHART
) -> tuple[int, str, str]:
    """Helm's exit status, what it rendered, and what it complains of; a setting, NAME=VALUE, counts before `values`.

    What `values` do not say of the images is IMAGES.
    """
    return _run_helm_template(settings, namespace, json.dumps(_with_images(values or {})), chart)


@cache  # many tests look at what the same few values give
def _run_helm_template(settings: tuple[str, ...], namespace: str, values: str, chart: str) -> tuple[int, str, str]:
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    done = subprocess.run(
        ["helm", "template", "pierhead", chart, "--namespace", namespace, "--values", "-", *arguments],
        input=values,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _with_images(values: Manifest) -> Manifest:
    return {**values, **{name: {"image": image, **values.get(name, {})} for name, image in IMAGES.items()}}


def render(
    *settings: str, namespace: str = "default", values: Manifest | None = None, chart: str = CHART
) -> list[Manifest]:
    """All that an installation with these settings has."""
    status, stdout, stderr = helm_template(*settings, namespace=namespace, values=values, chart=chart)
    assert status == 0, stderr
    return [document for document in yaml.load_all(stdout, yaml.CSafeLoader) if document]


def find_rights(role: Manifest) -> set[tuple[str, str, str]]:
    """What a role grants: API group, resource with its subresource, verb."""
    return {right for rule in role["rules"] for right in product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def without_hooks(documents: list[Manifest]) -> list[Manifest]:
    """What is there as long as the release is; a pod of `helm test` needs the release's ServiceAccount, for one."""
    return [one for one in documents if "helm.sh/hook" not in one["metadata"].get("annotations", {})]


def load_values(case: str) -> Manifest:
    """The values of a golden case, as a user writes them."""
    values: Manifest = yaml.safe_load((GOLDEN / case / "values.yaml").read_text())
    return values


def render_golden(case: str) -> str:
    """What a golden case has that an installation with the defaults has not, and what it lacks; of `default`, all.

    Left out is what other files have, word for word, and what each release changes.
    """
    found = _render_comparable(case)
    plain = {} if case == "default" else _render_comparable("default")
    lacks = "".join(f"# without {title}\n" for title in plain if title not in found)
    changed = [_without_settings_of(plain.get(title), one) for title, one in found.items() if one != plain.get(title)]
    return lacks + yaml.safe_dump_all(changed, sort_keys=False)


def _render_comparable(case: str) -> dict[str, Manifest]:
    documents = render(namespace="pierhead-system", values=load_values(case))
    return {_title(one): _make_comparable(one) for one in documents if not _is_a_copy(one)}


def _title(document: Manifest) -> str:
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def _is_a_copy(document: Manifest) -> bool:
    is_dashboards = "grafana_dashboard" in document["metadata"].get("labels", {})
    return is_dashboards or document["kind"] in ("CustomResourceDefinition", "PrometheusRule")


def _make_comparable(document: Manifest) -> Manifest:
    metadata = [document["metadata"]]
    if document["kind"] == "Deployment":
        metadata.append(document["spec"]["template"]["metadata"])
        del metadata[1]["annotations"]["checksum/config"]
    for one in metadata:
        for label in ("helm.sh/chart", "app.kubernetes.io/version"):
            one["labels"].pop(label, None)
    if document["kind"] == "ConfigMap":
        document["data"] = {name: yaml.safe_load(text) for name, text in document["data"].items()}
    return document


def _without_settings_of(other: Manifest | None, document: Manifest) -> Manifest:
    """Of the settings in a ConfigMap those that another one has otherwise."""
    if other is None or document["kind"] != "ConfigMap":
        return document
    [[name, settings]] = document["data"].items()
    left = {key: value for key, value in settings.items() if value != other["data"][name].get(key)}
    return {**document, "data": {name: left}}


def try_install(kubectl: Kubectl, documents: list[Manifest]) -> list[str]:
    """What the API server says of each document, by a server-side dry run; what is in `default` is in kubectl's."""
    for document in documents:
        if document["metadata"].get("namespace") == "default" and document["kind"] not in ("Role", "RoleBinding"):
            document["metadata"]["namespace"] = kubectl.namespace
    arguments = ("--server-side", "--force-conflicts", "--dry-run=server", "--filename", "-")
    return kubectl.in_any_namespace("apply", *arguments, stdin=make_list(documents)).splitlines()


@contextmanager
def upgraded(*settings: str) -> Iterator[None]:
    """The installed release with other values meanwhile; as it was afterwards, whatever happened."""
    before = json.loads(helm("status", *RELEASE, "--output", "json"))["version"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    try:
        helm("upgrade", RELEASE[0], CHART, *RELEASE[1:], "--reuse-values", "--wait", "--timeout", "2m", *arguments)
        wait_operator()
        yield
    finally:
        helm("rollback", RELEASE[0], str(before), *RELEASE[1:], "--wait", "--timeout", "2m")
        wait_operator()


@contextmanager
def uninstalled() -> Iterator[None]:
    """Without the release meanwhile; with the same one afterwards, whatever happened and whose the CRDs are by then."""
    values = helm("get", "values", *RELEASE, "--output", "json")
    # An operator that outlives its rights would be refused what it asks for.
    scale_operator(0)
    helm("uninstall", *RELEASE, "--wait", "--timeout", "2m")
    try:
        yield
    finally:
        options = ("--take-ownership", "--values", "-", "--wait", "--timeout", "2m")
        helm("install", RELEASE[0], CHART, *RELEASE[1:], *options, stdin=values)
        wait_operator()


def make_values_beside(kubectl: Kubectl) -> Manifest:
    """Those of a second release for kubectl's namespace alone, without a gateway, of the images of the first."""
    operator = SYSTEM.get("deployment", OPERATOR)
    settings = SYSTEM.get("configmap", OPERATOR)
    assert operator
    assert settings
    return {
        "crds": {"enabled": False},
        "watchNamespaces": [kubectl.namespace],
        "operator": {"image": operator["spec"]["template"]["spec"]["containers"][0]["image"]},
        "api": {"enabled": False},
        "server": yaml.safe_load(settings["data"]["operator.yaml"])["server"],
        "routing": {"provider": "none"},
    }


@contextmanager
def installed_beside(kubectl: Kubectl, release: str, values: Manifest, *options: str) -> Iterator[None]:
    """Another release meanwhile, in kubectl's namespace, and its operator leads; `options` are those of Helm."""
    place, waiting = ("--namespace", kubectl.namespace), ("--wait", "--timeout", "2m")
    try:
        helm("install", release, CHART, *place, *waiting, *options, "--values", "-", stdin=json.dumps(values))
        wait_operator(kubectl, f"{release}-operator")
        yield
    finally:
        helm("uninstall", release, *place, *waiting)


def helm(*arguments: str, stdin: str | None = None) -> str:
    """What the real Helm prints, of a command that takes its values from `stdin` if it asks for them."""
    argv = ["helm", *arguments]
    return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout


if __name__ == "__main__":
    for name in CASES:
        (GOLDEN / name / "rendered.yaml").write_text(render_golden(name))
