"""Where a request is at, and what Vertex AI's resource names mean here. No transport."""

import re
import secrets
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass

from pierhead_operator import names as operator_names

from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[a-z0-9]([-a-zA-Z0-9]{0,126}[a-z0-9])?")  # or an alias, which may be longer than an id
_NEW_ID = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?|[1-9][0-9]{0,9}")
_DEPLOYED_MODEL_ID = re.compile(r"[1-9][0-9]{0,9}")
_MODEL_NAME = re.compile(r"projects/([^/]+)/locations/([^/]+)/models/([^/@]+)(?:@([^/@]+))?")
_ID_DIGITS = 10


@dataclass(frozen=True)
class Place:
    """Where a request is at, in its own words, and the namespace."""

    project: str
    location: str
    namespace: str
    beta: bool = False  # whether it is v1beta1's, whose messages have fields of their own

    @property
    def resource(self) -> str:
        """The parent of all resources there."""
        return f"projects/{self.project}/locations/{self.location}"

    def endpoint(self, name: str) -> str:
        """The resource name of an endpoint."""
        return f"{self.resource}/endpoints/{name}"

    def model(self, name: str, version: str = "") -> str:
        """The resource name of a model, or of one version of it."""
        return f"{self.resource}/models/{name}" + (f"@{version}" if version else "")

    def job(self, name: str) -> str:
        """The resource name of a batch prediction job."""
        return f"{self.resource}/batchPredictionJobs/{name}"


class Projects:
    """Which namespaces projects are, and which locations there are."""

    def __init__(
        self, namespaces: Mapping[str, str], locations: Collection[str], overlaps: Container[str] = frozenset()
    ) -> None:
        """`overlaps` are mapped projects that have another namespace's name."""
        self._namespaces = namespaces
        self._locations = locations
        self._overlaps = overlaps

    def find_namespace(self, project: str) -> str:
        """The namespace that a project's id or number is mapped to; its own name where it is not.

        Raises PermissionDeniedError for a number that is not mapped, and for what is no namespace's name;
        FailedPreconditionError where it might be either of two.
        """
        if project in self._overlaps:
            raise FailedPreconditionError(
                f"project {project} is a namespace, and api.projects maps it to another one: give it another id there"
            )
        return self.find_mapped(project)

    def find_mapped(self, project: str) -> str:
        """The same, of two the one that it is mapped to."""
        if project in self._namespaces:
            return self._namespaces[project]
        if project.isdigit() or not _LABEL.fullmatch(project):
            raise PermissionDeniedError(f"there is no project {project} that you may see")
        return project

    def find_place(self, project: str, location: str) -> Place:
        """Raises NotFoundError where there is no such location, and what `find_namespace` raises."""
        if location not in self._locations:
            raise NotFoundError(f"there is no location {location}; there is {', '.join(self._locations)}")
        return Place(project, location, self.find_namespace(project))

    def find_default_place(self, project: str) -> Place:
        """A project's place where a request names no location; raises what `find_namespace` raises."""
        return self.find_place(project, next(iter(self._locations)))

    def find_model(self, place: Place, resource: str, field: str) -> tuple[str, str]:
        """The id and the version, or alias, of a model's resource name; without one, that is empty.

        Raises InvalidArgumentError, which names `field`, where it is none of this place's namespace.
        """
        match = _MODEL_NAME.fullmatch(resource)
        if match is None:
            wanted = place.model("MODEL")
            raise InvalidArgumentError(f"{resource!r} is no model's resource name, such as {wanted}", field)
        project, location, model, version = match.groups()
        if self.find_place(project, location).namespace != place.namespace:
            raise InvalidArgumentError(f"the model must be in project {place.project}", field)
        return check_id(model), version or ""


def split_version(name: str) -> tuple[str, str]:
    """The id and the version, or alias, of `MODEL` or `MODEL@VERSION`; without one, that is empty."""
    model, _, version = name.partition("@")
    return check_id(model), version


def check_id(name: str) -> str:
    """`name`, if there can be a resource of that name; raises NotFoundError."""
    if not _LABEL.fullmatch(name):
        raise NotFoundError(f"there is no {name}")
    return name


def check_version(version: str) -> str:
    """`version`, if a version or an alias can be called so, by AI Platform too; raises NotFoundError."""
    if not (_VERSION.fullmatch(version) or operator_names.AI_PLATFORM_NAME.fullmatch(version)):
        raise NotFoundError(f"there is no version {version}")
    return version


def check_new(name: str, field: str) -> str:
    """`name`, if an endpoint or a model may be called so; raises InvalidArgumentError, which names `field`."""
    if not _NEW_ID.fullmatch(name):
        raise InvalidArgumentError(
            "must be up to 63 of [a-z0-9-], with a letter first and no - last, or up to 10 digits", field
        )
    return name


def check_new_deployed_model(deployed_model_id: str) -> str:
    """`deployed_model_id`, if a DeployedModel may be called so; raises InvalidArgumentError."""
    if not _DEPLOYED_MODEL_ID.fullmatch(deployed_model_id):
        raise InvalidArgumentError("must be up to 10 digits, the first of them not 0", "deployedModel.id")
    return deployed_model_id


def make_id() -> str:
    """A new resource's id: ten digits, the first of them not 0, as Vertex AI's look."""
    least = 10 ** (_ID_DIGITS - 1)
    return str(least + secrets.randbelow(9 * least))
