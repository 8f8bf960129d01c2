"""AI Platform Prediction's models and versions, by what Vertex AI's do."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from pierhead_operator.records import Operation, OperationType
from pierhead_operator.resources import Manifest
from pierhead_operator.types import DeployedModel, Endpoint, Model

from pierhead_api.aiplatform import (
    UPDATABLE_MODEL,
    UPDATABLE_VERSION,
    AiPlatformModelBody,
    AiPlatformVersionBody,
    check_name,
    is_name,
    make_resources,
    make_version,
    scales,
    to_ai_platform_model,
    to_ai_platform_operation,
    to_ai_platform_version,
)
from pierhead_api.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pierhead_api.listing import Listed, ListRequest, select_page
from pierhead_api.models import DEFAULT, add_version, find_users, make_model, remove_version, resolve_version
from pierhead_api.names import Place, check_id
from pierhead_api.operations import Seen, compute_operation, make_serial
from pierhead_api.services.endpoints import EndpointService
from pierhead_api.services.models import ModelService
from pierhead_api.services.operations import OperationService
from pierhead_api.services.session import Manifests, Session, group_by
from pierhead_api.wire import Body, format_time, parse, parse_mask


@dataclass(frozen=True)
class AiPlatformService:
    """AI Platform's projects.models, projects.models.versions and projects.operations: none names a location."""

    session: Session

    async def create_model(self, project: str, body: Any) -> Body:
        """The Model, which is an Endpoint as long as it has no version; raises AlreadyExistsError."""
        sent = parse(AiPlatformModelBody, body)
        place, name = self._place(project), check_name(sent.name)
        if await self._find_model(place, name):
            raise AlreadyExistsError(f"there is a model {name}")
        await self._create_endpoint(place, name, {"description": sent.description, "labels": sent.labels})
        return await self.get_model(project, name)

    async def get_model(self, project: str, model: str) -> Body:
        """The Model; raises NotFoundError."""
        place = self._place(project)
        manifest, deployed = await self._read(place, model)
        return to_ai_platform_model(manifest, deployed, place)

    async def list_models(self, project: str, request: ListRequest) -> Body:
        """A page of the Models, and of the Endpoints that stand for those without a version."""
        place, cluster = self._place(project), self.session.cluster
        models, endpoints, deployed = await asyncio.gather(
            *(cluster.list(kind, place.namespace) for kind in (Model, Endpoint, DeployedModel))
        )
        of, taken = group_by(deployed, "model"), {one["metadata"]["name"] for one in models}
        taken |= {one["spec"]["endpoint"] for one in deployed}
        empty = [one for one in endpoints if is_name(one["metadata"]["name"]) and one["metadata"]["name"] not in taken]
        answers = [to_ai_platform_model(one, of.get(one["metadata"]["name"], []), place) for one in (*models, *empty)]
        return select_page(Listed(answers, "models", ("description", "name")), request)

    async def patch_model(self, project: str, model: str, body: Any, update_mask: str = "") -> Body:
        """The operation UPDATE_MODEL, which is done."""
        sent, fields = parse(AiPlatformModelBody, body), parse_mask(update_mask, body, UPDATABLE_MODEL)
        place = self._place(project)
        manifest, _ = await self._read(place, model)
        told = {name for name in fields if not name.startswith("default_version")}
        default = sent.default_version.name.rsplit("/", 1)[-1] if sent.default_version else ""
        if told != fields:
            if not default:
                raise InvalidArgumentError("must be set", "defaultVersion.name")
            await self.set_default(project, model, default)
        if told:
            kind = ModelService if manifest["kind"] == Model.KIND else EndpointService
            update = {"description": sent.description, "labels": sent.labels}
            await kind(self.session).patch(place, model, update, ",".join(sorted(told)))
        return self._tell_update(manifest, place)

    def _tell_update(self, manifest: Manifest, place: Place) -> Body:
        type_: OperationType = "UpdateModel" if manifest["kind"] == Model.KIND else "UpdateEndpoint"
        name = manifest["metadata"]["name"]
        operation = Operation(make_serial(self.session.now()), type_, manifest["metadata"]["uid"], name)
        answer = compute_operation(operation, Seen(manifest), place, place.resource)
        return to_ai_platform_operation(answer, place, name)

    async def delete_model(self, project: str, model: str) -> Body:
        """The operation DELETE_MODEL; raises FailedPreconditionError while it has versions."""
        place = self._place(project)
        manifest, _ = await self._read(place, model)
        if manifest["kind"] == Model.KIND:
            raise FailedPreconditionError(f"model {model} has versions: delete them first")
        operation = await EndpointService(self.session).delete(place, model)
        return to_ai_platform_operation(operation, place, model)

    async def create_version(self, project: str, model: str, body: Any) -> Body:
        """The operation CREATE_VERSION: the version is uploaded, and deployed on the model's Endpoint.

        A version that was uploaded, but not deployed, as after a crash, is deployed by the next try.
        """
        sent = parse(AiPlatformVersionBody, body)
        place, version = self._place(project), check_name(sent.name)
        manifest, deployed = await self._read(place, model)
        if find_users(deployed, model, version):
            raise AlreadyExistsError(f"there is a version {version} of model {model}")
        resources = make_resources(sent).model_dump(by_alias=True, exclude_none=True)
        await self._upload(place, model, sent)
        if manifest["kind"] == Model.KIND:
            with contextlib.suppress(AlreadyExistsError):
                await self._create_endpoint(place, model, {})
        asked = {"model": place.model(model, version), "displayName": version, "dedicatedResources": resources}
        asked["serviceAccount"] = sent.service_account
        operation = await EndpointService(self.session).deploy_model(place, model, {"deployedModel": asked})
        return to_ai_platform_operation(operation, place, model)

    async def get_version(self, project: str, model: str, version: str) -> Body:
        """The Version; raises NotFoundError."""
        place = self._place(project)
        manifest, deployed = await self._read_versions(place, model)
        found = resolve_version(Model.model_validate(manifest), version)
        return to_ai_platform_version(manifest, found.name, deployed, place)

    async def list_versions(self, project: str, model: str, request: ListRequest) -> Body:
        """A page of the Versions of a model."""
        place = self._place(project)
        manifest, deployed = await self._read(place, model)
        versions = manifest["spec"].get("versions", [])
        answers = [to_ai_platform_version(manifest, one["name"], deployed, place) for one in versions]
        return select_page(Listed(answers, "versions", ("description", "name", "state")), request)

    async def patch_version(self, project: str, model: str, version: str, body: Any, update_mask: str = "") -> Body:
        """The operation UPDATE_VERSION: done once as many nodes as it says serve."""
        sent, fields = parse(AiPlatformVersionBody, body), parse_mask(update_mask, body, UPDATABLE_VERSION)
        place = self._place(project)
        manifest, deployed = await self._read_versions(place, model)
        found = resolve_version(Model.model_validate(manifest), version).name
        if "description" in fields:
            update = {"versionDescription": sent.description}
            await ModelService(self.session).patch(place, f"{model}@{found}", update, "versionDescription")
        if not scales(fields):
            return self._tell_update(manifest, place)
        own = [one for one in deployed if one["spec"]["endpoint"] == model]
        users = find_users(own, model, found)
        if not users:
            raise FailedPreconditionError(f"version {found} of model {model} is not deployed")
        counts = {"min_replica_count", "max_replica_count"}
        resources = make_resources(sent).model_dump(by_alias=True, exclude_none=True, include=counts)
        mask = ",".join(f"dedicatedResources.{name}" for name in resources)
        answers = [
            await EndpointService(self.session).mutate_deployed_model(
                place, model, {"deployedModel": {"id": user, "dedicatedResources": resources}}, mask
            )
            for user in users
        ]
        return to_ai_platform_operation(answers[-1], place, model)

    async def set_default(self, project: str, model: str, version: str) -> Body:
        """The Version, which is the default one now."""
        place = self._place(project)
        await ModelService(self.session).merge_version_aliases(
            place, f"{model}@{version}", {"versionAliases": [DEFAULT]}
        )
        return await self.get_version(project, model, version)

    async def delete_version(self, project: str, model: str, version: str) -> Body:
        """The operation DELETE_VERSION; raises FailedPreconditionError for the default one, if it is not the last."""
        place = self._place(project)
        manifest, deployed = await self._read_versions(place, model)
        found = resolve_version(Model.model_validate(manifest), version).name
        last = len(manifest["spec"]["versions"]) == 1
        if not last:
            remove_version(manifest, found)  # raises before anything is undeployed
        models = ModelService(self.session)
        own = [manifest for manifest in deployed if manifest["spec"]["endpoint"] == model]
        elsewhere = [manifest for manifest in deployed if manifest["spec"]["endpoint"] != model]
        if users := find_users(elsewhere, model, found):
            raise FailedPreconditionError(f"version {found} is in use by deployed model {', '.join(users)}")
        # All that may refuse comes before anything is undeployed.
        await models.check_unused(place, [], model, found)
        await self.session.check_right("delete" if last else "patch", Model, place, model)
        await self._undeploy(place, model, find_users(own, model, found))
        if last:
            operation = await models.delete(place, model)
        else:
            operation = await models.delete_version(place, f"{model}@{found}")
        return to_ai_platform_operation(operation, place, model)

    async def get_operation(self, project: str, operation_id: str) -> Body:
        """The operation, as far as it is one of these."""
        place = self._place(project)
        operation = await OperationService(self.session).get(place, "", operation_id)
        return to_ai_platform_operation(operation, place)

    def _place(self, project: str) -> Place:
        return self.session.projects.find_default_place(project)

    async def _create_endpoint(self, place: Place, name: str, more: Body) -> None:
        await EndpointService(self.session).create(place, {"displayName": name, **more}, name)

    async def _upload(self, place: Place, model: str, sent: AiPlatformVersionBody) -> None:
        """Adds the version to the Model, which its first version makes."""
        body, now = make_version(sent, model), format_time(self.session.now())
        there = await self._find_model(place, model)
        if there is None:
            with contextlib.suppress(AlreadyExistsError):  # by another version that is made at the same time
                await self.session.cluster.create(make_model(body, place, model, now, sent.name))
                return

        def make_patch(manifest: Manifest) -> Manifest | None:
            versions = [version for version in manifest["spec"]["versions"] if version["name"] == sent.name]
            if not versions:
                return add_version(body, manifest, now, sent.name)[0]
            if versions[0]["artifactUri"] != sent.deployment_uri:
                raise AlreadyExistsError(f"there is a version {sent.name} of model {model}, of another deploymentUri")
            return None

        await self.session.edit(Model, place, model, make_patch)

    async def _undeploy(self, place: Place, model: str, names: list[str]) -> None:
        """Takes these from the model's Endpoint; their traffic goes to the first of those that stay."""
        if not names:
            return
        endpoints = EndpointService(self.session)
        endpoint = await endpoints.get(place, model)
        staying = [one["id"] for one in endpoint.get("deployedModels", []) if one["id"] not in names]
        split = endpoint.get("trafficSplit", {})
        left = {name: weight for name, weight in split.items() if name not in names}
        if staying and (gone := sum(split.values()) - sum(left.values())):
            left[staying[0]] = left.get(staying[0], 0) + gone
        for name in names:
            body = {"deployedModelId": name, "trafficSplit": left if staying and split.get(name) else {}}
            await endpoints.undeploy_model(place, model, body)

    async def _find_model(self, place: Place, model: str) -> Manifest | None:
        try:
            return await self.session.cluster.get(Model, place.namespace, model)
        except NotFoundError:
            return None

    async def _read_versions(self, place: Place, model: str) -> tuple[Manifest, Manifests]:
        manifest, deployed = await self._read(place, model)
        if manifest["kind"] != Model.KIND:
            raise NotFoundError(f"model {model} has no versions")
        return manifest, deployed

    async def _read(self, place: Place, model: str) -> tuple[Manifest, Manifests]:
        """The Model, or the Endpoint that stands for it; and the DeployedModels of it."""
        fields = {"spec.model": check_id(model)}
        manifest, deployed = await asyncio.gather(
            self._find_model(place, model), self.session.cluster.list(DeployedModel, place.namespace, fields=fields)
        )
        return manifest or await self.session.cluster.get(Endpoint, place.namespace, model), deployed
