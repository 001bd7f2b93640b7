"""All that answers HTTP, whichever server brings it: predictions by `endpoints`, everything else by `boundary`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from service import routes
from service.board import Board
from service.boundary import Boundary
from service.call import Endpoints
from service.journal import Journal
from service.keys import Keys
from service.metrics import Metrics
from service.model import Model, endpoints
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing


class Front:
    """The models' endpoints and the routes beside them; made before HTTP processes are forked, begun in each."""

    def __init__(self, app: Starlette, models: Sequence[Model], settings: Settings, keys: Keys, admins: Keys) -> None:
        """The routes take the place of those that `app` has."""
        self.models = models
        # Requests that no model answers are counted apart, in cells laid out as the first model's.
        self.journal = Journal(Metrics(models[0].manifest.classes), settings.access_log)
        self.board = Board(settings.http_processes, 0, 0, self.journal.metrics.size)
        self.scrape = routes.scrape_of(models, self.board.all_cells(), settings)
        table = routes.build(models, settings, keys, admins, self.scrape)
        app.router.routes[:] = table
        app.router.redirect_slashes = False
        app.user_middleware.clear()
        self.endpoints = Endpoints(endpoints(models), self.journal)
        self.boundary = Boundary(routes.application(app), {route.path for route in table}, self.journal)

    def begin(self, process: int, tracing: "Tracing | None" = None) -> None:
        """From now on this is that HTTP process; its event loop runs."""
        self.journal.metrics.cells = self.board.cells(process)
        self.journal.begin()
        for model in self.models:
            model.begin(process, tracing)

    def close(self) -> None:
        """Send nothing more to any worker."""
        for model in self.models:
            model.open_channel().close()
        for model in self.models:
            model.close()
