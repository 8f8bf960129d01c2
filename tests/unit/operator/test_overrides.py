"""What of its pods an author may say."""

import pytest
from pierhead_operator.resources.overrides import ALLOWED_VARIABLES, explain_overrides
from pierhead_operator.settings import OperatorSettings
from pierhead_operator.types import PodOverrides
from pierhead_server.settings import Settings as Server
from pydantic import ValidationError


def explain(settings, allowed=(), **overrides):
    server = settings.server.model_copy(update={"allowed_env": list(allowed)})
    return explain_overrides(PodOverrides.model_validate(overrides), server)


def name_variable(name):
    return [{"name": name, "value": "1"}]


# Those of the server that are the installation's, or the Model's, to say: they lead elsewhere, give a file or a folder
# another place, say who answers, or take room on the node from others.
NOT_THE_AUTHORS = {
    "PIERHEAD_ALLOW_CODE",
    "PIERHEAD_ARTIFACT_DIGEST",
    "PIERHEAD_ARTIFACT_URI",
    "PIERHEAD_BATCH_ALLOWED_URIS",
    "PIERHEAD_COMPILED_DIR",
    "PIERHEAD_DEPLOYED_MODEL_ID",
    "PIERHEAD_DRAIN_SECONDS",
    "PIERHEAD_HOST",
    "PIERHEAD_MAX_ARTIFACT_BYTES",
    "PIERHEAD_MODEL",
    "PIERHEAD_MODEL_CACHE_BYTES",
    "PIERHEAD_MODEL_DIR",
    "PIERHEAD_MODEL_DISPLAY_NAME",
    "PIERHEAD_MODEL_VERSION_ID",
    "PIERHEAD_PORT",
    "PIERHEAD_TERMINATION_LOG",
    "STORAGE_EMULATOR_HOST",
}


def test_every_setting_of_the_server_is_judged():
    settings = {str(field.validation_alias) for field in Server.model_fields.values()}
    assert settings == {name for name in ALLOWED_VARIABLES if name in settings} | NOT_THE_AUTHORS
    assert not NOT_THE_AUTHORS & set(ALLOWED_VARIABLES)
    assert {name for name in ALLOWED_VARIABLES if name.startswith("PIERHEAD_")} <= settings


REFUSED = {
    *NOT_THE_AUTHORS,
    "PIERHEAD_BATCH_JOB",
    "JOB_COMPLETION_INDEX",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_Region",
    "AWS_endpoint",
    "AWS_PROXY_URL",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HTTPS_PROXY",
    "https_proxy",
    "SSL_CERT_FILE",
    "HOME",
    "XDG_CACHE_HOME",
    "PATH",
    "CXX",
    "GCONV_PATH",
    "NVIDIA_VISIBLE_DEVICES",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    "TORCHINDUCTOR_CACHE_DIR",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "MYAPP_MODE",
}
NEVER = {
    "PIERHEAD_ALLOW_CODE",
    "PIERHEAD_ARTIFACT_URI",
    "PIERHEAD_ARTIFACT_DIGEST",
    "pierhead_allow_code",
    "Pierhead_Artifact_Uri",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "ld_audit",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "pythonhome",
}


@pytest.mark.parametrize("name", ALLOWED_VARIABLES)
def test_every_author_may_tune(settings, name):
    assert explain(settings, env=name_variable(name)) is None


@pytest.mark.parametrize("name", sorted(REFUSED | NEVER))
def test_variable_that_leads_elsewhere_is_refused_by_its_name(settings, name):
    assert explain(settings, env=name_variable(name)).startswith(f"spec.podOverrides.env[{name}] ")


@pytest.mark.parametrize("name", sorted(REFUSED - NEVER))
def test_platform_team_may_allow_it(settings, name):
    assert explain(settings, [name], env=name_variable(name)) is None
    assert explain(settings, [f"{name[:2]}*"], env=name_variable(name)) is None
    assert explain(settings, [f"{name}_OTHER", name[:-1]], env=name_variable(name))


@pytest.mark.parametrize("name", sorted(NEVER))
def test_what_runs_is_nobodys_to_allow(settings, name):
    told = explain(settings, [name, f"{name[:2]}*"], env=name_variable(name))
    assert f"spec.podOverrides.env[{name}] would say which code runs" in told


def test_fix_is_named(settings):
    assert "have it added to the chart's server.allowedEnv" in explain(settings, env=name_variable("MYAPP_MODE"))


def test_all_that_is_refused_is_told_at_once(settings):
    told = explain(
        settings,
        env=[*name_variable("A"), *name_variable("PIERHEAD_WORKERS"), *name_variable("B")],
        labels={"team": "a", "pierhead.dev/endpoint": "b"},
    )
    fields = [cause.split(" ")[0] for cause in told.split("; ")]
    assert fields == [
        "spec.podOverrides.env[A]",
        "spec.podOverrides.env[B]",
        "spec.podOverrides.labels[pierhead.dev/endpoint]",
    ]


RESERVED = (
    "pierhead.dev/deployed-model",
    "pierhead.dev/anything",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "pod-template-hash",
    "batch.kubernetes.io/job-name",
    "job-name",
    "controller-uid",
    "container.apparmor.security.beta.kubernetes.io/server",
)


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize("key", RESERVED)
def test_key_by_which_pods_are_known_is_refused(settings, field, key):
    assert explain(settings, **{field: {key: "x"}}).startswith(f"spec.podOverrides.{field}[{key}] ")


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_key_of_others_is_taken(settings, field):
    keys = ("team", "app.kubernetes.io/part-of", "example.com/pierhead.dev", "my.pierhead.dev", "job-names")
    assert explain(settings, **{field: dict.fromkeys(keys, "x")}) is None


@pytest.mark.parametrize(
    ("name", "taken"), [("online", True), ("my-system-class", True), ("system-node-critical", False)]
)
def test_priorities_of_the_clusters_own_pods_are_refused(settings, name, taken):
    assert (explain(settings, priorityClassName=name) is None) == taken


@pytest.mark.parametrize("name", ["*", "A B", "A=B", "A**", "", "1A"])
def test_allowed_name_that_is_none_is_refused_at_the_start(settings, name):
    data = settings.model_dump(by_alias=True)
    with pytest.raises(ValidationError):
        OperatorSettings.model_validate(data | {"server": {**data["server"], "allowedEnv": [name]}})
