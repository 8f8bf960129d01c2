"""The services, put together for one caller."""

from collections.abc import Callable
from dataclasses import dataclass

from pierhead_api.cluster import Cluster
from pierhead_api.kubernetes_api import Kubernetes
from pierhead_api.names import Projects
from pierhead_api.services import AiPlatformService, EndpointService, JobService, ModelService, OperationService
from pierhead_api.services.session import Session


@dataclass(frozen=True)
class Assembled:
    """All services, with one caller's rights."""

    endpoints: EndpointService
    models: ModelService
    jobs: JobService
    operations: OperationService
    ai_platform: AiPlatformService


def assemble(kubernetes: Kubernetes, projects: Projects, dedicated_dns: str) -> Callable[[str], Assembled]:
    """Makes the services of whoever has a token."""

    def make(token: str) -> Assembled:
        session = Session(Cluster(kubernetes, token), projects)
        return Assembled(
            EndpointService(session, dedicated_dns),
            ModelService(session),
            JobService(session),
            OperationService(session),
            AiPlatformService(session),
        )

    return make
