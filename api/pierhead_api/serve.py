"""The life of one API process: start, serve, drain, exit."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from enum import Enum
from types import FrameType

import uvicorn

from pierhead_api.access import Access, Authentication
from pierhead_api.app import Application, Parts
from pierhead_api.assembly import assemble
from pierhead_api.authorize import Authorizer
from pierhead_api.bounded_http import BoundedHttpProtocol
from pierhead_api.forward import Forwarder, Locate, connect_pods, locate_service
from pierhead_api.identity import AnonymousToken, Identity
from pierhead_api.kubernetes_api import connect
from pierhead_api.management import ASKED_HOST, Management
from pierhead_api.metrics import Metrics
from pierhead_api.names import Projects
from pierhead_api.overlaps import Overlaps
from pierhead_api.reviews import Reviews
from pierhead_api.route_table import RouteTable
from pierhead_api.settings import ApiSettings
from pierhead_api.unrouted import Gateway, Unrouted
from pierhead_api.watch import Watch, make_watches

logger = logging.getLogger(__name__)

# Longer than the longest prediction that is common; one that takes longer is cut off.
_FINISH_SECONDS = 60
# Longer than a gateway keeps an idle connection (Envoy: an hour), so that it is the gateway who closes: a request sent
# into a connection that the server just closed is an error.
_KEEP_ALIVE_SECONDS = 3900


class Part(Enum):
    """What one process serves."""

    ALL = "all"
    PREDICTIONS = "predictions"  # and what a gateway asks; management calls it hands on
    MANAGEMENT = "management"


class Server(uvicorn.Server):
    """uvicorn, which on SIGTERM goes on accepting for a while before it stops, and then exits with 0."""

    def __init__(self, app: Application, duty: "Duty", settings: ApiSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttpProtocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                # What a gateway says of the client goes on as it is; nothing here acts by it.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_FINISH_SECONDS,
            )
        )
        self._duty = duty
        self._drain_seconds = settings.drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn calls it so
        """uvicorn's signal handler: the first signal drains, a second one hurries."""
        if self._duty.draining:
            self.should_exit = True
            return
        self._duty.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        logger.info("draining for %s s", self._drain_seconds)
        # A gateway notices a pod that is going only after a while, and until then sends requests.
        asyncio.get_running_loop().call_later(self._drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


class Duty:
    """Whether requests are welcome."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches
        self.draining = False

    def explain_unready(self) -> str:
        """Why they are not; empty where they are."""
        if self.draining:
            return "the API is shutting down"
        if not all(watch.is_complete for watch in self._watches):
            return "the API has not seen all endpoints yet"
        return ""


async def serve(settings: ApiSettings, locate: Locate, part: Part = Part.ALL) -> None:
    """Serves until SIGTERM. `locate` tells where the pods of a DeployedModel answer."""
    table = RouteTable(offers_private=settings.provider == "none")
    async with connect() as kubernetes, connect_pods() as session:
        # Who serves what is for predictions.
        watches = [] if part is Part.MANAGEMENT else make_watches(kubernetes, table, settings.watch_namespaces)
        duty = Duty(watches)
        mapped = [project for project, namespace in settings.projects.items() if project != namespace]
        # Of an installation of some namespaces the chart knows which there are.
        overlaps = Overlaps(kubernetes, [] if settings.watch_namespaces else mapped)
        metrics, projects = Metrics(), Projects(settings.projects, settings.locations, overlaps)
        anonymous = AnonymousToken(kubernetes, settings.anonymous).get if settings.anonymous else None
        identity = Identity(anonymous, ASKED_HOST if part is Part.MANAGEMENT else b"host")
        reviews = Reviews(kubernetes, settings.audience)
        access = Access(reviews.may_predict)
        parts = Parts(
            identity=identity,
            authentication=Authentication(reviews.find_user),
            projects=projects,
            authorizer=Authorizer(identity, access, projects, table),
            unrouted=Unrouted(table, projects, find_gateway(settings)),
            forwarder=Forwarder(session, table, metrics, locate),
            metrics=metrics,
            make_services=assemble(kubernetes, projects, settings.dedicated_endpoint_dns),
            explain_unready=duty.explain_unready,
            management=Management(session, settings.management) if part is Part.PREDICTIONS else None,
        )
        server = Server(Application(parts), duty, settings)
        with socket.create_server((settings.host, settings.port), backlog=2048) as port:
            logger.info("listening on %s:%d", *port.getsockname()[:2])
            async with asyncio.TaskGroup() as tasks:
                looking = [overlaps.run(), *(watch.run() for watch in watches)]
                watching = [tasks.create_task(one) for one in looking]
                await server.serve(sockets=[port])
                for task in watching:
                    task.cancel()


def find_gateway(settings: ApiSettings) -> Gateway:
    """The gateway that leads here what it has no route for; Istio's leads no predictions here."""
    if settings.provider != "gateway-api":
        return Gateway.NONE
    return Gateway.ASKING if settings.authorization == "gateway" else Gateway.OPEN


def run(settings: ApiSettings, locate: Locate = locate_service, part: Part = Part.ALL) -> None:
    """`serve` in an event loop of its own."""
    # It says at its start and its end what is said here.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    with asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner:
        runner.run(serve(settings, locate, part))
