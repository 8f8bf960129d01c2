"""Models and their versions."""

import asyncio
from dataclasses import dataclass
from typing import Any

from pierhead_operator.records import Operation, Record
from pierhead_operator.resources import Manifest
from pierhead_operator.types import BatchPredictionJob, DeployedModel, Model

from pierhead_api import objects
from pierhead_api.errors import FailedPreconditionError, InvalidArgumentError
from pierhead_api.jobs import is_ended
from pierhead_api.listing import Listed, ListRequest, select_page
from pierhead_api.models import (
    UPDATABLE,
    MergeVersionAliasesBody,
    ModelBody,
    UploadModelBody,
    add_version,
    compute_etag,
    describe_model,
    find_users,
    make_model,
    merge_aliases,
    patch_model,
    remove_version,
    resolve_version,
    to_model,
)
from pierhead_api.names import Place, check_new, split_version
from pierhead_api.operations import (
    Seen,
    annotate,
    compute_operation,
    make_serial,
    patch_records,
    read_records,
)
from pierhead_api.services.lists import Listing, list_page
from pierhead_api.services.session import Manifests, Session, read_deployed, read_pages
from pierhead_api.wire import Body, format_time, parse, parse_mask

_FILTERABLE = ("displayName", "model", "createTime", "updateTime", "versionId")
_ORDERABLE = ("displayName", "createTime", "updateTime")
_VERSIONS_ORDERABLE = ("versionCreateTime", "createTime", "updateTime")


@dataclass(frozen=True)
class ModelService:
    """Vertex AI's ModelService. A model is named by its id, or with a version or an alias of it as `ID@VERSION`."""

    session: Session

    async def upload(self, place: Place, body: Any) -> Body:
        """The operation UploadModel: of a new model, or of a further version of `parentModel`."""
        sent = parse(UploadModelBody, body)
        if sent.is_default_version:
            sent = sent.model_copy(update={"model": sent.model.model_copy(update={"is_default_version": True})})
        if sent.parent_model:
            return await self._add_version(place, sent)
        name = check_new(sent.model_id, "modelId") if sent.model_id else self.session.make_id()
        now = self.session.now()
        serial, record = make_serial(now), Record(type="UploadModel", detail="1")
        wanted = objects.annotate(make_model(sent.model, place, name, format_time(now)), annotate(serial, record))
        made = await self.session.create(wanted, serial)
        operation = Operation(serial, "UploadModel", made["metadata"]["uid"], name, "1")
        return compute_operation(operation, Seen(made), place, place.model(name))

    async def _add_version(self, place: Place, sent: UploadModelBody) -> Body:
        name, _ = self.session.projects.find_model(place, sent.parent_model, "parentModel")
        if sent.model_id not in ("", name):
            raise InvalidArgumentError("must be left out, or be parentModel's", "modelId")
        now = self.session.now()
        serial = make_serial(now)

        def make_patch(manifest: Manifest) -> Manifest:
            patch, version = add_version(sent.model, manifest, format_time(now))
            patch["metadata"]["annotations"] |= patch_records(
                manifest, serial, Record(type="UploadModel", detail=version)
            )
            return patch

        changed = await self.session.edit(Model, place, name, make_patch, serial)
        version = read_records(changed)[serial].detail
        operation = Operation(serial, "UploadModel", changed["metadata"]["uid"], name, version)
        return compute_operation(operation, Seen(changed), place, place.model(name))

    async def get(self, place: Place, model: str) -> Body:
        """The Model: the version that is named, or the default one."""
        name, version = split_version(model)
        manifest, deployed = await self._read(place, name)
        return to_model(manifest, version, deployed, place)

    async def list(self, place: Place, request: ListRequest) -> Body:
        """A page of the Models, the default version of each."""
        cluster = self.session.cluster
        of: dict[str, Manifests] = {}

        async def join(models: Manifests) -> None:
            names = [model["metadata"]["name"] for model in models]
            of.update(await read_deployed(cluster, place.namespace, "model", names))

        listing = Listing(
            "models",
            [Model],
            _FILTERABLE,
            orderable=_ORDERABLE,
            describe=lambda model: [describe_model(model, place)],
            convert=lambda model, _: to_model(model, "", of[model["metadata"]["name"]], place),
            join=join,
        )
        return await list_page(cluster, place.namespace, listing, request)

    async def list_versions(self, place: Place, model: str, request: ListRequest) -> Body:
        """A page of a model's versions."""
        name, _ = split_version(model)
        manifest, deployed = await self._read(place, name)
        answers = [to_model(manifest, version["name"], deployed, place) for version in manifest["spec"]["versions"]]
        return select_page(Listed(answers, "models", _FILTERABLE, _VERSIONS_ORDERABLE, "versionId"), request)

    async def patch(self, place: Place, model: str, body: Any, update_mask: str = "") -> Body:
        """The Model after its update; raises AbortedError where the body's etag is out of date."""
        sent = parse(ModelBody, body)
        fields = parse_mask(update_mask, body, UPDATABLE)
        name, version = split_version(model)
        now = format_time(self.session.now())

        def make_patch(manifest: Manifest) -> Manifest:
            found = resolve_version(Model.model_validate(manifest), version)
            objects.check_etag(sent.etag, compute_etag(manifest, found.name))
            return patch_model(sent, manifest, found.name, fields, now)

        return await self._edit(place, name, version, make_patch)

    async def merge_version_aliases(self, place: Place, model: str, body: Any) -> Body:
        """The Model, of which that version has the aliases now."""
        sent = parse(MergeVersionAliasesBody, body)
        name, version = split_version(model)

        def make_patch(manifest: Manifest) -> Manifest:
            nonlocal version
            version = resolve_version(Model.model_validate(manifest), version).name  # the alias may go
            return merge_aliases(manifest, version, sent.version_aliases)

        changed = await self.session.edit(Model, place, name, make_patch)
        return to_model(changed, version, await self._list_deployed(place, name), place)

    async def delete(self, place: Place, model: str) -> Body:
        """The operation DeleteModel; raises FailedPreconditionError while anything is of it."""
        name, version = split_version(model)
        if version:
            raise InvalidArgumentError("name a version in deleteVersion, or the model alone", "name")
        manifest, deployed = await self._read(place, name)
        await self.check_unused(place, deployed, name, "")
        uid = manifest["metadata"]["uid"]
        await self.session.delete(Model, place, name, uid)
        operation = Operation(make_serial(self.session.now()), "DeleteModel", uid, name)
        return compute_operation(operation, Seen(None), place, place.resource)

    async def delete_version(self, place: Place, model: str) -> Body:
        """The operation DeleteModelVersion; raises FailedPreconditionError while anything is of it."""
        name, alias = split_version(model)
        if not alias:
            raise InvalidArgumentError("must name a version, as in MODEL@2", "name")
        manifest, deployed = await self._read(place, name)
        version = resolve_version(Model.model_validate(manifest), alias).name
        await self.check_unused(place, deployed, name, version)
        serial = make_serial(self.session.now())

        def make_patch(current: Manifest) -> Manifest:
            patch = remove_version(current, version)
            record = Record(type="DeleteModelVersion", detail=version)
            patch["metadata"]["annotations"] |= patch_records(current, serial, record)
            return patch

        changed = await self.session.edit(Model, place, name, make_patch, serial)
        operation = Operation(serial, "DeleteModelVersion", changed["metadata"]["uid"], name, version)
        return compute_operation(operation, Seen(changed), place, place.model(name))

    async def _edit(self, place: Place, name: str, version: str, make_patch: Any) -> Body:
        changed = await self.session.edit(Model, place, name, make_patch)
        deployed = await self._list_deployed(place, name)
        return to_model(changed, version, deployed, place)

    async def _read(self, place: Place, name: str) -> tuple[Manifest, Manifests]:
        return await asyncio.gather(
            self.session.cluster.get(Model, place.namespace, name), self._list_deployed(place, name)
        )

    async def _list_deployed(self, place: Place, name: str) -> Manifests:
        return await self.session.cluster.list(DeployedModel, place.namespace, fields={"spec.model": name})

    async def check_unused(self, place: Place, deployed: Manifests, model: str, version: str) -> None:
        """Raises FailedPreconditionError, which names them, while DeployedModels or running jobs are of it."""
        users = [f"deployed model {name}" for name in find_users(deployed, model, version)]
        cluster, fields = self.session.cluster, {"spec.model": model}
        async for jobs in read_pages(cluster, BatchPredictionJob, place.namespace, fields):
            running = [job for job in jobs if not is_ended(job)]
            users += [f"batch prediction job {name}" for name in find_users(running, model, version)]
        if users:
            raise FailedPreconditionError(f"{place.model(model, version)} is in use by {', '.join(users)}")
