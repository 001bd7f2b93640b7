"""The routes beside `/predict`: health, metrics, information and documentation."""

from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from models.manifest import Manifest
from service import __version__, metrics, openapi
from service.endpoint import Predict, refuse_unready
from service.errors import MethodNotAllowed, NotFound, NotReady
from service.settings import Settings
from service.transport import FAILED, Transport

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build(manifest: Manifest, settings: Settings, transport: Transport, predict: Predict) -> list[Route]:
    """The routes of an HTTP process."""

    def health(_: Request) -> Response:
        facts = ready(transport)
        model = {"name": manifest.name, "version": manifest.version}
        return JSONResponse({"status": "ready", "model": model, "device": facts["device"], "dtype": facts["dtype"]})

    def readyz(_: Request) -> Response:
        ready(transport)
        return Response()

    def livez(_: Request) -> Response:
        if transport.phase == FAILED:
            raise NotReady("The service has given up and is about to end.")
        return Response()

    def info(_: Request) -> Response:
        limits = settings.model_dump(mode="json", exclude={"model", "host", "port"})
        facts = transport.told(0) or {}
        return JSONResponse(
            {"manifest": manifest.model_dump(mode="json"), **facts, "limits": limits, "version": __version__}
        )

    async def scrape(_: Request) -> Response:
        return Response(await run_in_threadpool(metrics.scrape), headers={"content-type": METRICS_TYPE})

    document = openapi.document(manifest, settings, __version__)
    answers: dict[str, Callable[[Request], Any]] = {
        "/health": health,
        "/readyz": readyz,
        "/livez": livez,
        "/metrics": scrape,
    }
    if settings.info:
        answers["/info"] = info
    if settings.docs:
        answers["/openapi.json"] = lambda _: JSONResponse(document)
        answers["/docs"] = lambda _: HTMLResponse(openapi.page(document))
    return [
        Route("/predict", predict, methods=["POST"]),
        *(Route(path, answer, methods=["GET"]) for path, answer in answers.items()),
    ]


def ready(transport: Transport) -> dict[str, Any]:
    """The facts of a worker that will answer.

    Raises:
        NotReady, Draining: none will.
    """
    refuse_unready(transport.phase)
    facts = transport.told(0)
    if facts is None:
        raise NotReady("No worker is ready.")
    return facts


def translate(_: Request, error: Exception) -> Response:
    """Starlette's 404 and 405 as ours."""
    assert isinstance(error, HTTPException), "registered for HTTPException alone"
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        raise MethodNotAllowed("This route has other methods.", {"allow": allowed})
    raise NotFound("No such route.")
