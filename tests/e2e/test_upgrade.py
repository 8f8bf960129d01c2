"""From this version to the one before and back, under a stream of predictions of which none may fail."""

import json
import os

import pytest

from cluster import images, registry
from cluster.settings import Paths
from tests.chart import CHART, RELEASE, helm
from tests.e2e.conftest import (
    ECHO,
    ECHO_BODY,
    make_deployed_model,
    make_endpoint,
    make_predictor_model,
    upload_predictor,
    wait_compiled,
)
from tests.kube import OPERATOR, SYSTEM, predict_url, wait_answered, wait_operator, wait_until
from tests.prober import Prober
from tests.releases import find_releases, unpack

pytestmark = pytest.mark.exclusive

SERVER_UID = 65532
PHOTOS = {"name": "photos", "artifactUri": "gs://models/photos/1"}


@pytest.fixture
def values(cluster):
    """What the installation was made with; it is so again at the end, and of this version."""
    revision = json.loads(helm("status", *RELEASE, "--output", "json"))["version"]
    yield json.loads(helm("get", "values", *RELEASE, "--output", "json"))
    helm("rollback", RELEASE[0], str(revision), *RELEASE[1:], "--wait", "--timeout", "4m")
    wait_operator()


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The last release: the folder with its chart, and the reference of its image."""
    folder = unpack(find_releases()[-1], tmp_path_factory.mktemp("release"))
    return folder, images.ensure(Paths.from_environment(), images.make_pierhead_image("operator", folder))


@pytest.fixture
def forms(tmp_path):
    """A folder for compiled forms on the node, which is this machine, with one that the image of 0.1.0 left there."""
    folder = tmp_path / "forms"
    old = folder / ("0" * 32)
    old.mkdir(parents=True)
    (old / "form.json").write_text('{"batches":[1],"milliseconds":{"1":5.4}}')
    for path in (folder, old, old / "form.json"):
        os.chown(path, SERVER_UID, SERVER_UID)
    return folder


def _install(chart, values):
    """Waits until its operator has seen all that there is: it leads."""
    arguments = ("--values", "-", "--wait", "--timeout", "4m")
    helm("upgrade", RELEASE[0], str(chart), *RELEASE[1:], *arguments, stdin=json.dumps(values))
    wait_operator()


def _find_pods(kubectl):
    return {
        (pod["metadata"]["uid"], tuple(one["restartCount"] for one in pod["status"]["containerStatuses"]))
        for pod in kubectl.items("pods", "pierhead.dev/endpoint=photos")
    }


def _split(kubectl, **split):
    kubectl.patch("endpoint", "photos", {"spec": {"trafficSplit": split}})
    kubectl.wait_ready("endpoint", "photos")


def _find_image(kubectl, deployed_model):
    [pod] = kubectl.pods(deployed_model)
    return pod["spec"]["containers"][0]["image"]


def test_downgrade_and_upgrade_fail_no_prediction_and_restart_no_pod(kubectl, values, before, forms):
    folder, operator_image = before
    cache = {"compiledCache": {"hostPath": {"path": str(forms), "type": "Directory"}}}
    # The server's image of the last release is gigabytes of the same: another name stands for it.
    # One of its own for each image: a node keeps what it has once pulled by a name.
    server_image = f"{values['server']['image']}-before"
    registry.tag(values["server"]["image"], server_image.rpartition(":")[2])
    unknown = ("allowedEnv", "openvinoImage")  # to the last release
    server = {name: value for name, value in values["server"].items() if name not in unknown}
    old = {**values, "operator": {"image": operator_image}, "server": {**server, **cache, "image": server_image}}
    new = {**values, "server": {**values["server"], **cache}}
    model = make_predictor_model(upload_predictor("v1"), PHOTOS)
    kubectl.apply(model, make_endpoint({"one": 100}), make_deployed_model("one"))
    kubectl.wait_ready("endpoint", "photos")
    url = predict_url(kubectl.namespace, "photos")
    wait_answered(url, ECHO_BODY, "one")
    with Prober(url, ECHO_BODY) as prober:
        pods = _find_pods(kubectl)
        _install(folder / "charts" / "pierhead", old)
        # What the last release makes is there when this one comes.
        kubectl.apply(make_deployed_model("two"), make_deployed_model("photos", "photos"))
        kubectl.wait_ready("deployedmodel", "two", "photos")
        _split(kubectl, one=50, two=50)
        wait_until("both answer", lambda: prober.seen("two"))
        assert _find_image(kubectl, "two") == server_image
        assert pods < _find_pods(kubectl)
        pods = _find_pods(kubectl)
        assert kubectl.get("service", "ep-photos"), "of 0.1.0 an Endpoint has one, with an address"
        _install(CHART, new)
        kubectl.wait_ready("deployedmodel", "one", "two", "photos")
        _wait_compiled(kubectl, "photos")
        kubectl.apply(make_deployed_model("three"), make_deployed_model("more-photos", "photos"))
        kubectl.wait_ready("deployedmodel", "three", "more-photos")
        _wait_compiled(kubectl, "more-photos")
        _split(kubectl, one=20, two=30, three=50)
        wait_until("all answer", lambda: prober.seen("three"))
        assert pods < _find_pods(kubectl)
        assert _find_image(kubectl, "three") == values["server"]["image"]
        wait_until("it is gone with the release that made it", lambda: not kubectl.get("service", "ep-photos"))
    prober.check()
    old_form, form = sorted(path.name for path in forms.iterdir() if path.is_dir())
    assert old_form == "0" * 32, "nobody touches it"
    assert [path.name for path in (forms / old_form).iterdir()] == ["form.json"]
    assert "converted in" not in kubectl("logs", "deployment/dm-more-photos"), f"it shares {form}"


def _wait_compiled(kubectl, deployed_model):
    [pod] = kubectl.pods(deployed_model)
    wait_compiled(kubectl, pod["metadata"]["name"])


# Longer to load than a new operator takes to lead.
SLOW_TO_LOAD = ECHO.replace("cls()", "(__import__('time').sleep(40), cls())[1]")


@pytest.fixture
def paused(values):
    """An upgrade that has come to the settings, and not yet to the operator: it ends when it is told."""
    registry.tag(values["server"]["image"], "meanwhile")
    server_image = values["server"]["image"].rpartition(":")[0] + ":meanwhile"
    new = {**values, "server": {**values["server"], "image": server_image}}
    SYSTEM("rollout", "pause", f"deployment/{OPERATOR}")
    try:
        helm("upgrade", RELEASE[0], CHART, *RELEASE[1:], "--values", "-", stdin=json.dumps(new))
        yield server_image
    finally:
        _resume()


def _resume():
    SYSTEM.patch("deployment", OPERATOR, {"spec": {"paused": False}})  # kubectl refuses what is not paused any more


def test_what_is_created_meanwhile_serves_with_the_new_settings(kubectl, values, paused):
    """The operator of before makes its pods, which have served nobody when the new one comes."""
    model = make_predictor_model(upload_predictor("slow-to-load", SLOW_TO_LOAD))
    kubectl.apply(model, make_endpoint(), make_deployed_model("meanwhile", "slow-to-load"))
    wait_until("the old operator has made its pods", lambda: kubectl.pods("meanwhile"))
    assert _find_image(kubectl, "meanwhile") == values["server"]["image"]
    _resume()
    wait_operator()
    assert kubectl.condition("deployedmodel", "meanwhile", "Available")["status"] == "False", "it has served nobody"
    kubectl.wait_ready("deployedmodel", "meanwhile")
    wait_until("its pods are new", lambda: _find_images(kubectl, "meanwhile") == {paused})
    wait_answered(predict_url(kubectl.namespace, "photos"), ECHO_BODY, "meanwhile")


def _find_images(kubectl, deployed_model):
    return {pod["spec"]["containers"][0]["image"] for pod in kubectl.pods(deployed_model)}
