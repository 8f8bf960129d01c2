"""AI Platform Prediction's models and versions, by what Vertex AI's do."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from pierhead_operator import names as operator_names
from pierhead_operator.records import Operation, OperationType
from pierhead_operator.resources import Manifest
from pierhead_operator.routing import name_versions
from pierhead_operator.schema import Resource
from pierhead_operator.types import DeployedModel, Endpoint, Model

from pierhead_api import models, objects
from pierhead_api.aiplatform import (
    UPDATABLE_MODEL,
    UPDATABLE_VERSION,
    AiPlatformModelBody,
    AiPlatformVersionBody,
    compute_version_etag,
    find_name,
    find_own,
    find_version,
    is_name,
    make_counts,
    make_name,
    make_resources,
    make_version,
    patch_counts,
    patch_model,
    to_ai_platform_model,
    to_ai_platform_operation,
    to_ai_platform_version,
)
from pierhead_api.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from pierhead_api.listing import Listed, ListRequest, select_page
from pierhead_api.models import DEFAULT, ModelBody, add_version, find_users, make_model, remove_version
from pierhead_api.names import Place
from pierhead_api.operations import Seen, compute_operation, drop_leaving, make_serial, patch_decided_traffic
from pierhead_api.services.endpoints import EndpointService
from pierhead_api.services.lists import Listing, list_page
from pierhead_api.services.models import ModelService
from pierhead_api.services.operations import OperationService
from pierhead_api.services.session import Manifests, Session, read_deployed
from pierhead_api.splits import decide_handover_split
from pierhead_api.wire import Body, format_time, parse, parse_mask


@dataclass(frozen=True)
class AiPlatformService:
    """AI Platform's projects.models, projects.models.versions and projects.operations: none names a location.

    `model` and `version` are what a client calls them; `name` is what Kubernetes does.
    """

    session: Session

    async def create_model(self, project: str, body: Any) -> Body:
        """The Model, which is an Endpoint as long as it has no version; raises AlreadyExistsError."""
        sent = parse(AiPlatformModelBody, body)
        place, name = self._place(project), make_name(sent.name)
        taken = AlreadyExistsError(f"there is a model {sent.name}")
        if await self._find(Model, place, name):
            raise taken
        try:
            more = {"description": sent.description, "labels": sent.labels}
            await EndpointService(self.session).create(place, {"displayName": sent.name, **more}, name)
        except AlreadyExistsError:
            raise taken from None
        return await self.get_model(project, sent.name)

    async def get_model(self, project: str, model: str) -> Body:
        """The Model; raises NotFoundError."""
        place = self._place(project)
        manifest, deployed = await self._read(place, model)
        return to_ai_platform_model(manifest, deployed, place)

    async def list_models(self, project: str, request: ListRequest) -> Body:
        """A page of the Models, and of the Endpoints that stand for those without a version."""
        place, cluster = self._place(project), self.session.cluster
        of: dict[str, Manifests] = {}
        empty: set[str] = set()  # names of Endpoints that stand for a model

        async def join(manifests: Manifests) -> None:
            models, endpoints = (
                {_name(one) for one in manifests if one["kind"] == kind.KIND} for kind in (Model, Endpoint)
            )
            alone = {name for name in endpoints - models if is_name(name)}
            of.update(await read_deployed(cluster, place.namespace, "model", models))
            on = await read_deployed(cluster, place.namespace, "endpoint", alone)
            empty.update(name for name in alone if not on[name])

        def convert(manifest: Manifest) -> list[Body]:
            name = _name(manifest)
            if manifest["kind"] == Model.KIND:
                return [to_ai_platform_model(manifest, of[name], place)]
            return [to_ai_platform_model(manifest, [], place)] if name in empty else []

        listing = Listing(
            "models",
            [Model, Endpoint],
            ("description", "name"),
            describe=convert,
            convert=lambda _, answer: answer,
            join=join,
            joined=["name"],
        )
        return await list_page(cluster, place.namespace, listing, request)

    async def patch_model(self, project: str, model: str, body: Any, update_mask: str = "") -> Body:
        """The operation UPDATE_MODEL, which is done: one write has all of it. Raises AbortedError for a stale etag."""
        sent, fields = parse(AiPlatformModelBody, body), parse_mask(update_mask, body, UPDATABLE_MODEL)
        place = self._place(project)
        manifest, _ = await self._read(place, model)
        kind: type[Resource] = Model if manifest["kind"] == Model.KIND else Endpoint

        def make_patch(current: Manifest) -> Manifest:
            objects.check_etag(sent.etag, objects.compute_etag(current))
            return patch_model(sent, current, fields)

        return self._tell_update(await self.session.edit(kind, place, _name(manifest), make_patch), place)

    def _tell_update(self, manifest: Manifest, place: Place) -> Body:
        type_: OperationType = "UpdateModel" if manifest["kind"] == Model.KIND else "UpdateEndpoint"
        name = _name(manifest)
        operation = Operation(make_serial(self.session.now()), type_, manifest["metadata"]["uid"], name)
        answer = compute_operation(operation, Seen(manifest), place, place.resource)
        return to_ai_platform_operation(answer, place, name)

    async def delete_model(self, project: str, model: str) -> Body:
        """The operation DELETE_MODEL; raises FailedPreconditionError while it has versions."""
        place = self._place(project)
        manifest, _ = await self._read(place, model)
        if manifest["kind"] == Model.KIND:
            raise FailedPreconditionError(f"model {model} has versions: delete them first")
        operation = await EndpointService(self.session).delete(place, _name(manifest))
        return to_ai_platform_operation(operation, place, _name(manifest))

    async def create_version(self, project: str, model: str, body: Any) -> Body:
        """The operation CREATE_VERSION: the version is uploaded, and deployed on the model's Endpoint.

        A version that was uploaded, but not deployed, as after a crash, is deployed by the next try.
        """
        sent = parse(AiPlatformVersionBody, body)
        place, version = self._place(project), make_name(sent.name)
        manifest, deployed = await self._read(place, model)
        name, endpoints = _name(manifest), EndpointService(self.session)
        if find_users(deployed, name, version):
            raise AlreadyExistsError(f"there is a version {sent.name} of model {model}")
        resources = make_resources(sent).model_dump(by_alias=True, exclude_none=True)
        await self._upload(place, manifest, sent)
        if manifest["kind"] == Model.KIND:
            with contextlib.suppress(AlreadyExistsError):
                await endpoints.create(place, {"displayName": operator_names.ai_platform(name)}, name)
        asked = {"model": place.model(name, version), "displayName": sent.name, "dedicatedResources": resources}
        asked["serviceAccount"] = sent.service_account
        operation = await endpoints.deploy_model(place, name, {"deployedModel": asked})
        return to_ai_platform_operation(operation, place, name)

    async def get_version(self, project: str, model: str, version: str) -> Body:
        """The Version; raises NotFoundError."""
        place = self._place(project)
        manifest, deployed, found = await self._read_version(place, model, version)
        return to_ai_platform_version(manifest, found, deployed, place)

    async def list_versions(self, project: str, model: str, request: ListRequest) -> Body:
        """A page of the Versions of a model."""
        place = self._place(project)
        manifest, deployed = await self._read(place, model)
        versions = manifest["spec"].get("versions", [])
        answers = [to_ai_platform_version(manifest, one["name"], deployed, place) for one in versions]
        return select_page(Listed(answers, "versions", ("description", "name", "state")), request)

    async def patch_version(self, project: str, model: str, version: str, body: Any, update_mask: str = "") -> Body:
        """The operation UPDATE_VERSION: done once as many nodes as it says serve.

        The description is the Model's, the nodes are the DeployedModels'. All that may refuse any of it comes before
        the first write, and what only Kubernetes can refuse is written first. Raises AbortedError for a stale etag.
        """
        sent, fields = parse(AiPlatformVersionBody, body), parse_mask(update_mask, body, UPDATABLE_VERSION)
        place = self._place(project)
        manifest, deployed, found = await self._read_version(place, model, version)
        name = _name(manifest)
        own = find_own(deployed, name, found)
        objects.check_etag(sent.etag, compute_version_etag(manifest, found, own))
        counts = make_counts(sent, fields)
        if counts and not own:
            raise FailedPreconditionError(f"version {version} of model {model} is not deployed")
        wanted = [patch_counts(one, counts) for one in own] if counts else []
        if described := "description" in fields:
            sending = ModelBody(version_description=sent.description)
            models.patch_model(sending, manifest, found, {"version_description"}, "")  # raises what the write would
            await self.session.check_right("patch", Model, place, name)
        endpoints = EndpointService(self.session)
        answers = [await endpoints.mutate_deployed_model(place, name, {"deployedModel": one}) for one in wanted]
        if described:
            read = models.compute_etag(manifest, found) if sent.etag else ""
            update = {"versionDescription": sent.description, "etag": read}
            await ModelService(self.session).patch(place, f"{name}@{found}", update, "versionDescription")
        return to_ai_platform_operation(answers[-1], place, name) if answers else self._tell_update(manifest, place)

    async def set_default(self, project: str, model: str, version: str) -> Body:
        """The Version, which is the default one now."""
        place = self._place(project)
        manifest, _, found = await self._read_version(place, model, version)
        aliases = {"versionAliases": [DEFAULT]}
        await ModelService(self.session).merge_version_aliases(place, f"{_name(manifest)}@{found}", aliases)
        return await self.get_version(project, model, version)

    async def delete_version(self, project: str, model: str, version: str) -> Body:
        """The operation DELETE_VERSION; raises FailedPreconditionError for the default one, if it is not the last."""
        place = self._place(project)
        manifest, deployed, found = await self._read_version(place, model, version)
        name, last = _name(manifest), len(manifest["spec"]["versions"]) == 1
        if not last:
            remove_version(manifest, found)  # raises before anything is undeployed
        service = ModelService(self.session)
        elsewhere = [one for one in deployed if one["spec"]["endpoint"] != name]
        if users := find_users(elsewhere, name, found):
            raise FailedPreconditionError(f"version {version} is in use by deployed model {', '.join(users)}")
        # All that may refuse comes before anything is undeployed.
        await service.check_unused(place, [], name, found)
        await self.session.check_right("delete" if last else "patch", Model, place, name)
        await self._undeploy(place, name, [_name(one) for one in find_own(deployed, name, found)])
        operation = await (service.delete(place, name) if last else service.delete_version(place, f"{name}@{found}"))
        return to_ai_platform_operation(operation, place, name)

    async def get_operation(self, project: str, operation_id: str) -> Body:
        """The operation, as far as it is one of these."""
        place = self._place(project)
        id_, _, endpoint = operation_id.partition("~")
        operation = await OperationService(self.session).get(place, f"endpoints/{endpoint}" if endpoint else "", id_)
        return to_ai_platform_operation(operation, place)

    def _place(self, project: str) -> Place:
        return self.session.projects.find_default_place(project)

    async def _upload(self, place: Place, manifest: Manifest, sent: AiPlatformVersionBody) -> None:
        """Adds the version to the Model, which its first version makes of what the Endpoint told of the model."""
        name, version = _name(manifest), make_name(sent.name)
        body, now = make_version(sent, manifest), format_time(self.session.now())
        if manifest["kind"] != Model.KIND:
            told = {"description": manifest["spec"].get("description", ""), "labels": objects.read_labels(manifest)}
            with contextlib.suppress(AlreadyExistsError):  # by another version that is made at the same time
                await self.session.cluster.create(make_model(body.model_copy(update=told), place, name, now, version))
                return

        def make_patch(current: Manifest) -> Manifest | None:
            known = name_versions(Model.model_validate(current))
            holder = known.get(sent.name, known.get(version))
            if holder is None:
                return add_version(body, current, now, version)[0]
            of = f"of model {operator_names.ai_platform(name)}"
            if holder != version:
                other = operator_names.ai_platform(holder)
                raise AlreadyExistsError(f"{sent.name} is an alias of version {other} {of}")
            [there] = [one for one in current["spec"]["versions"] if one["name"] == version]
            if there["artifactUri"] != sent.deployment_uri:
                raise AlreadyExistsError(f"there is a version {sent.name} {of}, of another deploymentUri")
            return None

        await self.session.edit(Model, place, name, make_patch)

    async def _undeploy(self, place: Place, name: str, leaving: list[str]) -> None:
        """Takes these from the model's Endpoint; their traffic goes to the first of those that stay."""
        if not leaving:
            return
        for one in leaving:
            await self.session.check_right("delete", DeployedModel, place, one)
        fields = {"spec.endpoint": name}

        async def make_patch(endpoint: Manifest) -> Manifest | None:
            deployed = await self.session.cluster.list(DeployedModel, place.namespace, fields=fields)
            there = drop_leaving(deployed, endpoint)
            there.sort(key=lambda one: (objects.create_time(one), _name(one)))
            split = decide_handover_split(Endpoint.model_validate(endpoint), [_name(one) for one in there], leaving)
            return None if split is None else patch_decided_traffic(endpoint, split, self.session.now())

        await self.session.edit(Endpoint, place, name, make_patch)
        for one in leaving:
            await EndpointService(self.session).undeploy_model(place, name, {"deployedModelId": one})

    async def _find(self, kind: type[Resource], place: Place, name: str) -> Manifest | None:
        try:
            return await self.session.cluster.get(kind, place.namespace, name)
        except NotFoundError:
            return None

    async def _read_version(self, place: Place, model: str, version: str) -> tuple[Manifest, Manifests, str]:
        """The Model, the DeployedModels of it, and the version's name."""
        manifest, deployed = await self._read(place, model)
        if manifest["kind"] != Model.KIND:
            raise NotFoundError(f"model {model} has no versions")
        return manifest, deployed, find_version(manifest, version)

    async def _read(self, place: Place, model: str) -> tuple[Manifest, Manifests]:
        """The Model, or the Endpoint that stands for it; and the DeployedModels of it."""
        name = find_name(model)
        manifest, deployed = await asyncio.gather(
            self._find(Model, place, name),
            self.session.cluster.list(DeployedModel, place.namespace, fields={"spec.model": name}),
        )
        found = manifest or await self._find(Endpoint, place, name)
        if found is None:
            raise NotFoundError(f"there is no model {model}")
        return found, deployed


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])
