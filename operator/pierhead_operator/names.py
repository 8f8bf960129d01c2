"""Every name that Pierhead gives: the API group, labels, annotations and the names of derived objects.

Derived names are deterministic, valid where Kubernetes is strictest (a DNS-1035 label, as Services want) and at most
63 characters. Nothing here imports anything of ours.
"""

import hashlib
import re

GROUP = "pierhead.dev"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "pierhead"
FIELD_MANAGER = "pierhead"
# Holds `spec.replicas` for the moment in which an autoscaler takes over, see cluster.apply.
HANDOVER_FIELD_MANAGER = "pierhead-handover"

# Holds what of a Job is ours to change after it was made.
CONTROL_FIELD_MANAGER = "pierhead-control"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
MANAGED_BY = "pierhead"
OURS = {LABEL_MANAGED_BY: MANAGED_BY}  # what everything that Pierhead makes carries
LABEL_ENDPOINT = f"{GROUP}/endpoint"
LABEL_MODEL = f"{GROUP}/model"
LABEL_DEPLOYED_MODEL = f"{GROUP}/deployed-model"
LABEL_BATCH_PREDICTION_JOB = f"{GROUP}/batch-prediction-job"
LABEL_BATCH_PREDICTION_JOB_UID = f"{GROUP}/batch-prediction-job-uid"
ANNOTATION_APPLIED = f"{GROUP}/applied"
ANNOTATION_DEADLINE = f"{GROUP}/active-deadline-seconds"
ANNOTATION_PINNED = f"{GROUP}/pinned"
ANNOTATION_INSTALLATION = f"{GROUP}/installation"
ANNOTATION_WATCH_NAMESPACES = f"{GROUP}/watch-namespaces"
ANNOTATION_RENEW = f"{GROUP}/renew"
# In which the Job controller counts the failures of an index, in each of its pods, for the pod that follows.
ANNOTATION_INDEX_FAILURES = "batch.kubernetes.io/job-index-failure-count"
ANNOTATION_INDEX_IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
KUEUE = "kueue.x-k8s.io/"  # how Kueue's own labels begin, which a Job has from its BatchPredictionJob
KUEUE_MIN_PARALLELISM = f"{KUEUE}job-min-parallelism"

SERVER_CONTAINER = "server"
PROBE_PATH = "/v1/probe"  # of the model server: a prediction of the model's own sample
READINESS_PATH = "/readyz"  # of the model server: whether it wants requests, and why not
PROGRESS_PATH = "/v1/progress"  # of a batch worker
MAX_NAME = 63
_DIGEST = 8
# What AI Platform takes for the name of a model or of a version.
AI_PLATFORM_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_MARKED = re.compile(r"(.+)---([0-9a-f]+)")


def shorten(name: str, limit: int = MAX_NAME) -> str:
    """`name` itself where it fits, else its beginning and a hash of the whole: distinct names stay distinct.

    But for who makes them meet: `photos-1a2b3c4d` may be the name of one and the shortened name of another. The second
    to come is told so (NotOwned).
    """
    return name if len(name) <= limit else _mark(name, name, limit)


def _mark(beginning: str, whole: str, limit: int) -> str:
    digest = hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST]
    return f"{beginning[: limit - _DIGEST - 1].rstrip('-')}-{digest}"


def server(deployed_model: str) -> str:
    """The Deployment, Service and HorizontalPodAutoscaler of a DeployedModel.

    The prefix makes a name of digits alone, which Vertex AI's ids are, a valid Service name.
    """
    return shorten(f"dm-{deployed_model}")


def route(endpoint: str) -> str:
    """The HTTPRoute or VirtualService of an Endpoint, and the Service it leads to while nobody serves."""
    return shorten(f"ep-{endpoint}")


def model_route(model: str, part: int = 1) -> str:
    """The HTTPRoute or VirtualService of a Model; where it takes several, that of each part.

    The number is in the prefix: behind the name, part 2 of Model `photos` would be part 1 of Model `photos-2`.
    """
    return shorten(f"mdl-{model}" if part == 1 else f"mdl{part}-{model}")


def batch(batch_prediction_job: str) -> str:
    """The Job of a BatchPredictionJob. Kubernetes names its pods' hosts after it and their index, up to 999."""
    return shorten(f"bpj-{batch_prediction_job}", MAX_NAME - len("-999"))


def volume(claim: str) -> str:
    """The volume of a PersistentVolumeClaim in a pod. A claim's name may be longer than a volume's, and have dots."""
    name = f"pvc-{claim}"
    return shorten(name) if "." not in name else _mark(name.replace(".", "-"), name, MAX_NAME)


def endpoint_resource(project: str, location: str, endpoint: str) -> str:
    """Vertex AI's resource name of an endpoint; a project is a namespace."""
    return f"projects/{project}/locations/{location}/endpoints/{endpoint}"


def model_resource(project: str, location: str, model: str) -> str:
    """Vertex AI's resource name of a model."""
    return f"projects/{project}/locations/{location}/models/{model}"


def of_ai_platform(name: str) -> str:
    """The name of the Model, or of the version, that AI Platform calls so: the same where Kubernetes knows its letters.

    A _ is two hyphens: `my_model` is `my--model`. Behind three stands which letters are capital, a bit for each
    character in base 16: `Photos_v2` is `photos--v2---1`. No two names become one, and one may become too long.
    """
    if not AI_PLATFORM_NAME.fullmatch(name):
        return name
    small = name.lower().replace("_", "--")
    capitals = sum(1 << place for place, letter in enumerate(name) if letter.isupper())
    # Two _ look like that mark, and no name ends with a hyphen: a 0 behind the mark says that no letter is capital.
    marked = capitals or "---" in small or small.endswith("-")
    return f"{small}---{capitals:x}" if marked else small


def ai_platform(name: str) -> str:
    """What AI Platform calls the Model, or the version, of this name: the one whose `of_ai_platform` it is, if any."""
    found = _MARKED.fullmatch(name)
    small, capitals = (found[1], int(found[2], 16)) if found else (name, 0)
    letters = enumerate(small.replace("--", "_"))
    told = "".join(letter.upper() if capitals >> place & 1 else letter for place, letter in letters)
    return told if of_ai_platform(told) == name else name
