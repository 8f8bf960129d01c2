"""Mapped projects that have a namespace's name: which of the two a path means, nobody could say."""

import asyncio
import logging
from collections.abc import Collection

from pierhead_api.errors import ApiError, NotFoundError
from pierhead_api.kubernetes_api import Call, Kubernetes

logger = logging.getLogger(__name__)

_SECONDS = 60.0


class Overlaps:
    """Looks from time to time, since namespaces come and go."""

    def __init__(self, kubernetes: Kubernetes, projects: Collection[str]) -> None:
        """`projects` are the ids that are mapped to namespaces of other names."""
        self._kubernetes = kubernetes
        self._projects = projects
        self._found: set[str] = set()

    def __contains__(self, project: object) -> bool:
        return project in self._found

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while self._projects:
            await self.look()
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        """Which of them are namespaces' names. Where nobody says so, what was known stays."""
        for project in self._projects:
            await self._look(project)

    async def _look(self, project: str) -> None:
        try:
            await self._kubernetes.request_as_self(Call("GET", f"/api/v1/namespaces/{project}"))
        except NotFoundError:
            self._found.discard(project)
        except ApiError as error:
            logger.warning("whether the project %s is a namespace's name, too, is not known: %s", project, error)
        else:
            if project not in self._found:
                logger.warning("the project %s is a namespace's name, too: its calls are refused", project)
            self._found.add(project)
