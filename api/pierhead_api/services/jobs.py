"""Batch prediction jobs."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pierhead_operator.records import Operation
from pierhead_operator.resources import Manifest
from pierhead_operator.types import BatchPredictionJob, Model

from pierhead_api import objects
from pierhead_api.errors import FailedPreconditionError, NotFoundError
from pierhead_api.jobs import JobBody, describe_job, is_ended, make_job, to_job
from pierhead_api.listing import ListRequest
from pierhead_api.models import resolve_version
from pierhead_api.names import Place, check_id
from pierhead_api.operations import Seen, compute_operation, make_serial
from pierhead_api.services.lists import Listing, list_page
from pierhead_api.services.session import Manifests, Session
from pierhead_api.wire import Body, parse

_FILTERABLE = ("displayName", "modelDisplayName", "state", "createTime", "updateTime")
_ORDERABLE = ("displayName", "createTime", "updateTime", "startTime", "endTime")
_AT_ONCE = 8  # Models that are read for one call


@dataclass(frozen=True)
class JobService:
    """Vertex AI's JobService, as far as batch prediction jobs."""

    session: Session

    async def create(self, place: Place, body: Any) -> Body:
        """The BatchPredictionJob, whose model's version is pinned."""
        sent = parse(JobBody, body, beta=place.beta)
        name, alias = self.session.projects.find_model(place, sent.model, "model")
        model = Model.model_validate(await self.session.cluster.get(Model, place.namespace, name))
        version = resolve_version(model, alias).name
        wanted = make_job(sent, place, self.session.make_id(), name, version)
        return to_job(await self.session.create(wanted), model.display_name, place)

    async def get(self, place: Place, job: str) -> Body:
        """The BatchPredictionJob."""
        manifest = await self._read(place, job)
        model = manifest["spec"]["model"]
        return to_job(manifest, (await self._find_display_names(place, [model]))[model], place)

    async def list(self, place: Place, request: ListRequest) -> Body:
        """A page of the BatchPredictionJobs."""
        displayed: dict[str, str] = {}  # by the Model's name

        async def join(jobs: Manifests) -> None:
            unknown = {job["spec"]["model"] for job in jobs} - displayed.keys()
            displayed.update(await self._find_display_names(place, unknown))

        listing = Listing(
            "batchPredictionJobs",
            [BatchPredictionJob],
            _FILTERABLE,
            orderable=_ORDERABLE,
            describe=lambda job: [describe_job(job, displayed.get(job["spec"]["model"], ""), place)],
            convert=lambda job, _: to_job(job, displayed[job["spec"]["model"]], place),
            join=join,
            joined=["modelDisplayName"],
        )
        return await list_page(self.session.cluster, place.namespace, listing, request)

    async def _find_display_names(self, place: Place, models: Collection[str]) -> dict[str, str]:
        """What people see of these Models by their names; nothing of one that is gone."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def find(model: str) -> str:
            async with slots:
                try:
                    return objects.read_display_name(await self.session.cluster.get(Model, place.namespace, model))
                except NotFoundError:
                    return ""

        return dict(zip(models, await asyncio.gather(*map(find, models)), strict=True))

    async def cancel(self, place: Place, job: str) -> Body:
        """Nothing: the job is told to end, and is no other one where it has."""

        def make_patch(manifest: Manifest) -> Manifest | None:
            return None if is_ended(manifest) else {"spec": {"cancel": True}}

        await self.session.edit(BatchPredictionJob, place, check_id(job), make_patch)
        return {}

    async def delete(self, place: Place, job: str) -> Body:
        """The operation DeleteBatchPredictionJob; raises FailedPreconditionError while the job runs."""
        manifest = await self._read(place, job)
        if not is_ended(manifest):
            raise FailedPreconditionError(f"batch prediction job {job} has not ended: cancel it first")
        uid = manifest["metadata"]["uid"]
        await self.session.delete(BatchPredictionJob, place, job, uid)
        operation = Operation(make_serial(self.session.now()), "DeleteBatchPredictionJob", uid, job)
        return compute_operation(operation, Seen(None), place, place.resource)

    async def _read(self, place: Place, job: str) -> Manifest:
        return await self.session.cluster.get(BatchPredictionJob, place.namespace, check_id(job))
