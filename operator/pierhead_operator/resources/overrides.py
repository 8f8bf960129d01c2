"""What of a pod its author may not say, and why: what would run something else than the Model, or pass for ours. Pure.

The API server's rules refuse most of it where it is written. They know neither the installation's settings nor what an
older CRD let through: so the same is asked here, before any pod is made.
"""

from collections.abc import Iterator

from pierhead_operator.settings import ServerSettings
from pierhead_operator.types import (
    CODE_VARIABLE_PREFIXES,
    RESERVED_KEYS,
    RESERVED_PREFIXES,
    SYSTEM_PRIORITY,
    VERSION_VARIABLES,
    PodOverrides,
)

# What every author may set: what a pod computes with, and by whose keys it reads storage. None of it leads to another
# storage, runs code, or says whose pod it is; what may do that is the platform team's to allow.
ALLOWED_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PIERHEAD_ACCESS_LOG",
    "PIERHEAD_COMPILE",
    "PIERHEAD_DEVICE",
    "PIERHEAD_HEAD_TIMEOUT_SECONDS",
    "PIERHEAD_LOG_FORMAT",
    "PIERHEAD_LOG_LEVEL",
    "PIERHEAD_LOG_SAMPLE",
    "PIERHEAD_MAX_BATCH_DELAY_SECONDS",
    "PIERHEAD_MAX_IMAGE_PIXELS",
    "PIERHEAD_MAX_INSTANCES",
    "PIERHEAD_MAX_PIXELS_IN_FLIGHT",
    "PIERHEAD_MAX_REQUESTS_BYTES",
    "PIERHEAD_MAX_REQUEST_BYTES",
    "PIERHEAD_MAX_REQUEST_PIXELS",
    "PIERHEAD_MIN_UPLOAD_RATE",
    "PIERHEAD_PREDICT_TIMEOUT_SECONDS",
    "PIERHEAD_QUEUE_SIZE",
    "PIERHEAD_UPLOAD_GRACE_SECONDS",
    "PIERHEAD_WORKERS",
    "PIERHEAD_WORKER_MEMORY_BYTES",
)


def explain_overrides(overrides: PodOverrides, server: ServerSettings) -> str | None:
    """What of it is not the author's to say, each by its field, and the fix; None where all is."""
    return "; ".join(_find_refused(overrides, server)) or None


def _find_refused(overrides: PodOverrides, server: ServerSettings) -> Iterator[str]:
    for variable in overrides.env:
        name = variable.get("name", "")
        if is_never_allowed(name):
            yield f"spec.podOverrides.env[{name}] would say which code runs, which the Model's version alone says"
        elif not _is_allowed(name, server):
            yield (
                f"spec.podOverrides.env[{name}] is not among the variables that this installation allows:"
                " take it out, or have it added to the chart's server.allowedEnv"
            )
    for field, keys in (("labels", overrides.labels), ("annotations", overrides.annotations)):
        for key in filter(is_reserved, keys):
            yield f"spec.podOverrides.{field}[{key}] is for Pierhead and Kubernetes, who know by it whose a pod is"
    if (overrides.priority_class_name or "").startswith(SYSTEM_PRIORITY):
        yield (
            f"spec.podOverrides.priorityClassName: {overrides.priority_class_name} is for the cluster's own pods:"
            " name another one"
        )


def is_never_allowed(variable: str) -> bool:
    """Whether no installation allows a variable, in whatever case: it would have the pod run something else."""
    name = variable.upper()
    return name in VERSION_VARIABLES or name.startswith(CODE_VARIABLE_PREFIXES)


def _is_allowed(variable: str, server: ServerSettings) -> bool:
    return variable in ALLOWED_VARIABLES or any(
        variable.startswith(allowed[:-1]) if allowed.endswith("*") else variable == allowed
        for allowed in server.allowed_env
    )


def is_reserved(key: str) -> bool:
    """Whether a label or an annotation is Pierhead's or Kubernetes' own."""
    return key.startswith(RESERVED_PREFIXES) or key in RESERVED_KEYS
