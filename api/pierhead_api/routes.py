"""Vertex AI's REST verbs, and which of the services' functions each one is. No framework."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic.alias_generators import to_snake

from pierhead_api.errors import InvalidArgumentError
from pierhead_api.listing import ListRequest
from pierhead_api.names import Place
from pierhead_api.wire import parse_seconds

Body = dict[str, Any]
_SIZE = re.compile(r"-?[0-9]{1,9}")


class Services(Protocol):
    """The functions that answer, for one caller; each has the verbs of one kind of resource."""

    @property
    def endpoints(self) -> Any: ...

    @property
    def models(self) -> Any: ...

    @property
    def jobs(self) -> Any: ...

    @property
    def operations(self) -> Any: ...

    @property
    def ai_platform(self) -> Any: ...


@dataclass(frozen=True)
class Request:
    """What a request says, whatever brought it."""

    place: Place
    names: Mapping[str, str]  # of its path
    query: Mapping[str, str]
    body: Body

    def parameter(self, name: str) -> str:
        """A parameter of the query, in camelCase or snake_case; empty where there is none."""
        return self.query.get(name) or self.query.get(to_snake(name)) or ""

    @property
    def project(self) -> str:
        """The project, in the request's own words."""
        return self.place.project

    @property
    def version(self) -> str:
        """Of AI Platform's paths, the version."""
        return self.names["version"]

    @property
    def id(self) -> str:
        """The resource that the path names."""
        return self.names["id"]

    @property
    def mask(self) -> str:
        """The fields that a patch is about."""
        return self.parameter("updateMask")

    @property
    def parent(self) -> str:
        """Of an operation, what its name has before it, such as endpoints/photos; empty where that is the place."""
        return self.names.get("parent", "")

    @property
    def listing(self) -> ListRequest:
        """What a list's query says; raises InvalidArgumentError."""
        size = self.parameter("pageSize") or "0"
        if not _SIZE.fullmatch(size):
            raise InvalidArgumentError("must be a whole number", "pageSize")
        return ListRequest(
            filter=self.parameter("filter"),
            page_size=int(size),
            page_token=self.parameter("pageToken"),
            order_by=self.parameter("orderBy"),
            read_mask=self.parameter("readMask"),
        )

    @property
    def timeout(self) -> float:
        """Seconds to wait, of the query or the body; as many as there are where it is not told.

        Raises InvalidArgumentError.
        """
        return parse_seconds(self.parameter("timeout") or self.body.get("timeout"), "timeout")


Handle = Callable[[Services, Request], Awaitable[Body | None]]


@dataclass(frozen=True)
class Verb:
    """One verb on one kind of resource."""

    name: str  # for the metrics
    method: str
    path: str  # below the project
    handle: Handle

    @property
    def resource(self) -> str:
        """The kind of resource, for the metrics."""
        below = self.path.removeprefix(_LOCATION)
        return "operations" if "/operations" in below else below.split("/")[1].split(":")[0]


_LOCATION = "/locations/{location:part}"
_ENDPOINT = "/endpoints/{id:part}"
_MODEL = "/models/{id:part}"
_JOB = "/batchPredictionJobs/{id:part}"
_OPERATION = "/operations/{id:part}"
# What an operation may be about, by its name.
_PARENTS = ("", "/{parent:parent}")

_ENDPOINT_VERBS: dict[str, tuple[str, Handle]] = {
    "POST /endpoints": ("create", lambda s, r: s.endpoints.create(r.place, r.body, r.parameter("endpointId"))),
    "GET /endpoints": ("list", lambda s, r: s.endpoints.list(r.place, r.listing)),
    f"GET {_ENDPOINT}": ("get", lambda s, r: s.endpoints.get(r.place, r.id)),
    f"PATCH {_ENDPOINT}": ("patch", lambda s, r: s.endpoints.patch(r.place, r.id, r.body, r.mask)),
    f"DELETE {_ENDPOINT}": ("delete", lambda s, r: s.endpoints.delete(r.place, r.id)),
    f"POST {_ENDPOINT}:deployModel": (
        "deployModel",
        lambda s, r: s.endpoints.deploy_model(r.place, r.id, r.body),
    ),
    f"POST {_ENDPOINT}:undeployModel": (
        "undeployModel",
        lambda s, r: s.endpoints.undeploy_model(r.place, r.id, r.body),
    ),
    f"POST {_ENDPOINT}:mutateDeployedModel": (
        "mutateDeployedModel",
        lambda s, r: s.endpoints.mutate_deployed_model(r.place, r.id, r.body, r.mask),
    ),
}

_MODEL_VERBS: dict[str, tuple[str, Handle]] = {
    "POST /models:upload": ("upload", lambda s, r: s.models.upload(r.place, r.body)),
    "GET /models": ("list", lambda s, r: s.models.list(r.place, r.listing)),
    f"GET {_MODEL}": ("get", lambda s, r: s.models.get(r.place, r.id)),
    f"PATCH {_MODEL}": ("patch", lambda s, r: s.models.patch(r.place, r.id, r.body, r.mask)),
    f"DELETE {_MODEL}": ("delete", lambda s, r: s.models.delete(r.place, r.id)),
    f"GET {_MODEL}:listVersions": ("listVersions", lambda s, r: s.models.list_versions(r.place, r.id, r.listing)),
    f"POST {_MODEL}:mergeVersionAliases": (
        "mergeVersionAliases",
        lambda s, r: s.models.merge_version_aliases(r.place, r.id, r.body),
    ),
    f"DELETE {_MODEL}:deleteVersion": ("deleteVersion", lambda s, r: s.models.delete_version(r.place, r.id)),
}

_JOB_VERBS: dict[str, tuple[str, Handle]] = {
    "POST /batchPredictionJobs": ("create", lambda s, r: s.jobs.create(r.place, r.body)),
    "GET /batchPredictionJobs": ("list", lambda s, r: s.jobs.list(r.place, r.listing)),
    f"GET {_JOB}": ("get", lambda s, r: s.jobs.get(r.place, r.id)),
    f"POST {_JOB}:cancel": ("cancel", lambda s, r: s.jobs.cancel(r.place, r.id)),
    f"DELETE {_JOB}": ("delete", lambda s, r: s.jobs.delete(r.place, r.id)),
}

_OPERATION_VERBS: dict[str, tuple[str, Handle]] = {
    "GET /operations": ("list", lambda s, r: s.operations.list(r.place, r.parent, r.listing)),
    f"GET {_OPERATION}": ("get", lambda s, r: s.operations.get(r.place, r.parent, r.id)),
    f"POST {_OPERATION}:cancel": ("cancel", lambda s, r: s.operations.cancel(r.place, r.parent, r.id)),
    f"POST {_OPERATION}:wait": ("wait", lambda s, r: s.operations.wait(r.place, r.parent, r.id, r.timeout)),
    f"DELETE {_OPERATION}": ("delete", lambda s, r: s.operations.delete(r.place, r.parent, r.id)),
}


# AI Platform's paths have no location.
_VERSION = f"{_MODEL}/versions/{{version:part}}"
_AI_PLATFORM_VERBS: dict[str, tuple[str, Handle]] = {
    "POST /models": ("create", lambda s, r: s.ai_platform.create_model(r.project, r.body)),
    "GET /models": ("list", lambda s, r: s.ai_platform.list_models(r.project, r.listing)),
    f"GET {_MODEL}": ("get", lambda s, r: s.ai_platform.get_model(r.project, r.id)),
    f"PATCH {_MODEL}": ("patch", lambda s, r: s.ai_platform.patch_model(r.project, r.id, r.body, r.mask)),
    f"DELETE {_MODEL}": ("delete", lambda s, r: s.ai_platform.delete_model(r.project, r.id)),
    f"POST {_MODEL}/versions": ("createVersion", lambda s, r: s.ai_platform.create_version(r.project, r.id, r.body)),
    f"GET {_MODEL}/versions": ("listVersions", lambda s, r: s.ai_platform.list_versions(r.project, r.id, r.listing)),
    f"GET {_VERSION}": ("getVersion", lambda s, r: s.ai_platform.get_version(r.project, r.id, r.version)),
    f"PATCH {_VERSION}": (
        "patchVersion",
        lambda s, r: s.ai_platform.patch_version(r.project, r.id, r.version, r.body, r.mask),
    ),
    f"DELETE {_VERSION}": ("deleteVersion", lambda s, r: s.ai_platform.delete_version(r.project, r.id, r.version)),
    f"POST {_VERSION}:setDefault": (
        "setDefault",
        lambda s, r: s.ai_platform.set_default(r.project, r.id, r.version),
    ),
    f"GET {_OPERATION}": ("get", lambda s, r: s.ai_platform.get_operation(r.project, r.id)),
}


def _make_verbs(table: Mapping[str, tuple[str, Handle]], parent: str = _LOCATION) -> list[Verb]:
    return [Verb(name, *_place(method_and_path, parent), handle) for method_and_path, (name, handle) in table.items()]


def _place(method_and_path: str, parent: str) -> tuple[str, str]:
    method, path = method_and_path.split(" ")
    return method, parent + path


# Google's clients ask for operations at /ui, not at /v1.
OPERATION_VERBS = [verb for parent in _PARENTS for verb in _make_verbs(_OPERATION_VERBS, _LOCATION + parent)]
VERBS = [
    *_make_verbs(_ENDPOINT_VERBS),
    *_make_verbs(_MODEL_VERBS),
    *_make_verbs(_JOB_VERBS),
    *OPERATION_VERBS,
    *_make_verbs(_AI_PLATFORM_VERBS, parent=""),
]
