"""A model that is served, and all that is its own: arena, versions and their workers, endpoints, counts.

A service has one or several. They share its HTTP processes and, on a CPU, its cores; each has a capacity of its own, so
that no model's crowd keeps another's requests out.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from service import feedback, open_inference, predict, speed
from service.album import Album, Sweeper
from service.board import LONGEST_DOCUMENT, SIDES
from service.call import Endpoint, Shared
from service.channel import Channel
from service.crew import Berth, Crew
from service.drift import Drift
from service.edition import Found
from service.errors import NotFound
from service.feedback import Feedback
from service.journal import Journal
from service.keeper import Keeper
from service.keys import Keys
from service.metrics import Metrics
from service.open_inference import OpenInference
from service.predict import Predict
from service.rollout import Rollout
from service.settings import Settings
from service.sockets import StartError
from service.transport import MAX_CLASSES, Transport
from service.versions import Versions

if TYPE_CHECKING:
    from service.tracing import Tracing


class Model:
    """One model, as the main process makes it and HTTP processes inherit it."""

    def __init__(
        self,
        found: Found,
        settings: Settings,
        keys: Keys,
        devices: int,
        launch: Callable[["Model", Crew, Berth], None],
    ) -> None:
        """`launch` starts a worker on one of so many `devices`.

        Raises:
            StartError: it is too large to be served.
        """
        self.edition, self.store, self.settings = found.edition, found.store, settings
        manifest = self.manifest = found.edition.manifest
        self.name = manifest.name
        if len(manifest.classes) > MAX_CLASSES:
            raise StartError(
                f"{found.edition.path}: it has {len(manifest.classes)} classes; at most {MAX_CLASSES} can be served"
            )
        told = manifest.model_dump_json().encode()
        if len(told) > LONGEST_DOCUMENT:
            raise StartError(
                f"{found.edition.path}: its manifest has {len(told)} bytes; at most {LONGEST_DOCUMENT} can be served"
            )
        wanted = [*range(devices)] * settings.workers
        places = len(wanted) + settings.spares
        berths = [Berth(index, index % places % devices) for index in range(SIDES * places)]
        self.crews = [Crew(side, berths[side * places :][:places], wanted) for side in range(SIDES)]
        self.crews[0].begin(found.edition)
        self.metrics = Metrics(manifest.classes)
        self.transport = Transport(settings.http_processes, places, settings.capacity_bytes, self.metrics.size)
        self.transport.publish(0, told)
        self.versions = Versions(self.transport)
        self.keeper = Keeper(self.name, self.transport, Metrics(manifest.classes), self.crews, partial(launch, self))
        everybody = self.transport.all_cells()
        own = Metrics(manifest.classes)  # of the main process
        own.cells = everybody[-1]
        drift = Drift(manifest.validation_statistics, own, self.transport.serving_cells, settings.drift_window_s)
        rollout = Rollout(self.name, self.transport, own, self.crews, found.store, drift)
        self.keeper.also = rollout.look, drift.look
        self.channel: Channel | None = None
        self.journal = Journal(self.metrics, settings.access_log, self.name)
        shared = Shared(manifest, settings, keys, self.journal, self.open_channel)
        self.predict, self.open_inference = Predict(shared), OpenInference(shared)
        self.feedback = Feedback(shared) if settings.feedback else None
        self.predict.feedback = self.open_inference.feedback = self.feedback
        self.sweeper: Sweeper | None = None
        if self.feedback and found.album:
            kept = found.album.absolute(), manifest.classes
            self.sweeper = Sweeper(settings, *kept, own, everybody)
            self.feedback.album = Album(*kept, settings.keep_bytes, self.metrics, everybody)

    def open_channel(self) -> Channel:
        """This HTTP process's channel."""
        assert self.channel is not None, "requests come after the lifespan has begun"
        return self.channel

    def answering(self) -> bool:
        """Whether this HTTP process's images are answered."""
        return self.open_channel().canaries.answering()

    @property
    def first_berths(self) -> Sequence[Berth]:
        """Those of the workers that the service begins with."""
        return self.crews[0].berths[: len(self.crews[0].wanted)]

    @property
    def loaded(self) -> bool:
        """Whether these have proved the artifact."""
        return all(self.transport.told(berth.index) for berth in self.first_berths)

    def begin(self, process: int, tracing: "Tracing | None") -> None:
        """From now on this is that HTTP process."""
        self.metrics.cells = self.transport.cells(process)
        self.journal.begin()
        pace = partial(speed.pace, self.transport, self.settings)
        self.channel = Channel(self.transport, process, self.settings.capacity, self.metrics, self.versions, pace)
        self.predict.tracing = self.open_inference.tracing = tracing
        if self.feedback:
            self.feedback.begin(process)
            self.feedback.tracing = tracing

    def close(self) -> None:
        """The HTTP process ends; its channel is closed already."""
        if self.feedback:
            self.feedback.close()


def named(route: str, models: Sequence[Model]) -> Iterator[tuple[str, Model]]:
    """Where each model answers: at the route with its name behind it, the only one also at the route as it stands."""
    if len(models) == 1:
        yield route, models[0]
    for model in models:
        yield f"{route}/{model.name}", model


def nameless(route: str, models: Sequence[Model]) -> Callable[[Request], Awaitable[Response]]:
    """What answers at the route as it stands, where there are several."""
    names = ", ".join(model.name for model in models)

    async def refuse(_: Request) -> Response:
        raise NotFound(f"This service has several models ({names}); ask one by its name, at {route}/NAME.")

    return refuse


def endpoints(models: Sequence[Model]) -> dict[str, Endpoint]:
    """What answers a POST without Starlette, by path."""
    found: dict[str, Endpoint] = {path: model.predict for path, model in named(predict.ROUTE, models)}
    for path, model in named(feedback.ROUTE, models):
        if model.feedback:
            found[path] = model.feedback
    for model in models:
        found |= dict.fromkeys(open_inference.paths(model.manifest), model.open_inference)
    return found
