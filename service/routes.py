"""The routes beside predictions: health, metrics, information, documentation, the page, and what `/v2` tells."""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from prometheus_client import start_http_server
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__, administration, feedback, open_inference, openapi, page, speed
from service.board import FAILED
from service.call import refuse_unready
from service.errors import MethodNotAllowed, NotFound, NotReady, ServiceError
from service.keys import Keys
from service.metrics import Metrics, Scrape
from service.predict import ROUTE
from service.present import Present
from service.settings import Settings
from service.store import Store
from service.transport import Transport
from service.versions import Versions

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TRITON = {"BYTES": "TYPE_STRING"}  # data types that its model configuration names otherwise
Answering = Callable[[Request], Awaitable[Response]]
# Settings that are nobody's outside.
NO_LIMITS = {"model", "host", "port", "metrics_port", "api_keys_file", "admin_keys_file", "keep_images"}


def build(
    versions: Versions,
    settings: Settings,
    keys: Keys,
    admins: Keys,
    store: Store,
    transport: Transport,
    scraping: Scrape,
    answering: Callable[[], bool],
) -> list[Route]:
    """The routes of an HTTP process; `answering` tells whether its images are answered."""
    manifest = versions.serving.manifest  # of which name, classes and input size stay

    async def health(_: Request) -> Response:
        facts = ready(transport, answering)
        model = {"name": manifest.name, "version": versions.serving.manifest.version}
        return JSONResponse({"status": "ready", "model": model, "device": facts["device"], "dtype": facts["dtype"]})

    async def readyz(_: Request) -> Response:
        ready(transport, answering)
        return Response()

    async def livez(_: Request) -> Response:
        if transport.phase == FAILED:
            raise NotReady("The service has given up and is about to end.")
        return Response()

    def info(request: Request) -> Response:
        keys.check(dict(request.scope["headers"]))
        limits = settings.model_dump(mode="json", exclude=NO_LIMITS)
        facts: dict[str, object] = {
            "manifest": versions.serving.manifest.model_dump(mode="json"),
            "limits": limits,
            "version": __version__,
        }
        if settings.keep_images:
            facts["images_kept"] = True
        for told in transport.told_on(transport.serving)[:1]:
            facts |= {"device": told["device"], "dtype": told["dtype"], "optimisation_steps": told["plan"]["steps"]}
            facts["speed"] = speed.of(told["plan"], settings).told()
        return JSONResponse(facts)

    async def scrape(_: Request) -> Response:
        return Response(await run_in_threadpool(scraping.text), headers={"content-type": METRICS_TYPE})

    def tried(_: Request) -> Response:
        told, guarding = page.page(versions.serving.manifest, settings, keyed=bool(keys))
        return HTMLResponse(told, headers=guarding)

    def document() -> openapi.Json:
        given = {"keyed": bool(keys), "operators": bool(admins)}
        return openapi.document(versions.serving.manifest, settings, __version__, **given)

    answers: dict[str, Callable[[Request], Any]] = {
        "/health": health,
        "/readyz": readyz,
        "/livez": livez,
    }
    if settings.metrics_port is None:
        answers["/metrics"] = scrape
    if settings.info:
        answers["/info"] = info
    if settings.docs:
        answers["/openapi.json"] = lambda _: JSONResponse(document())
        answers["/docs"] = lambda _: HTMLResponse(openapi.page(document()))
        answers["/"] = tried
    answered = [ROUTE, *([feedback.ROUTE] if settings.feedback else ())]
    return [
        *(Route(path, answered_before, methods=["POST"]) for path in answered),
        *(Route(path, answer, methods=["GET"]) for path, answer in answers.items()),
        *described(versions, livez, readyz),
        *(administration.routes(transport, admins, store) if admins else ()),
    ]


def described(versions: Versions, livez: Answering, readyz: Answering) -> Iterator[Route]:
    """What the Open Inference Protocol tells of server and model; only the status of health and ready counts."""
    manifest = versions.serving.manifest
    inputs, outputs = open_inference.tensors(manifest)
    server = {"name": "darkroom", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    model: dict[str, Any] = {"name": manifest.name, "platform": "pytorch_torchscript"}
    model |= {"inputs": inputs, "outputs": outputs}
    # As Triton has it, which tritonclient asks for.
    config: dict[str, Any] = {
        "name": manifest.name,
        "platform": "pytorch_libtorch",
        "backend": "darkroom",
        "max_batch_size": 0,
    }
    for kind, tensors in (("input", inputs), ("output", outputs)):
        config[kind] = [
            {"name": tensor["name"], "data_type": TRITON.get(tensor["datatype"], f"TYPE_{tensor['datatype']}")}
            | {"dims": tensor["shape"]}
            for tensor in tensors
        ]

    async def index(request: Request) -> Response:
        try:
            await readyz(request)
            state = "READY"
        except ServiceError:
            state = "UNAVAILABLE"
        return JSONResponse([{"name": manifest.name, "version": name, "state": state} for name in versions.names()])

    async def told(_: Request) -> Response:
        return JSONResponse(model | {"versions": versions.names()})

    def known(answer: Answering) -> Answering:
        async def answer_if_known(request: Request) -> Response:
            asked, names = request.path_params, versions.names()
            if asked["model"] != manifest.name or asked.get("version", names[0]) not in names:
                there = f"version{'s' * (len(names) > 1)} {' and '.join(names)}"
                raise NotFound(f"This service has the model {manifest.name}, {there}, alone.")
            return await answer(request)

        return answer_if_known

    def telling(document: object) -> Answering:
        async def tell(_: Request) -> Response:
            return JSONResponse(document)

        return tell

    yield Route("/v2", telling(server), methods=["GET"])
    yield Route("/v2/health/live", livez, methods=["GET"])
    yield Route("/v2/health/ready", readyz, methods=["GET"])
    yield Route("/v2/repository/index", index, methods=["POST"])
    for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        yield Route(at, known(told), methods=["GET"])
        yield Route(f"{at}/ready", known(readyz), methods=["GET"])
        yield Route(f"{at}/config", known(telling(config)), methods=["GET"])
        yield Route(f"{at}/infer", known(answered_before), methods=["POST"])


def scrape_of(name: str, settings: Settings, transport: Transport, metrics: Metrics) -> Scrape:
    """What `/metrics` shows; made in the main process."""

    def models() -> Iterator[tuple[str, ...]]:
        for facts in transport.all_told():
            yield name, facts["version"], facts["digest"], facts["device"], facts["dtype"]

    return Scrape(metrics, transport.all_cells(), models, Present(settings, transport, os.getpid()))


def serve_metrics(scraping: Scrape, host: str, port: int) -> None:
    """Serve `/metrics` on a port of its own, by threads of this process.

    Raises:
        OSError: the port cannot be had.
    """
    server, _ = start_http_server(port, host, scraping.registry())
    everywhere = server.get_app()
    assert everywhere is not None, "it has just been given one"

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start("404 Not Found", [("content-type", "text/plain")])
            return [b"Only /metrics is here.\n"]
        if environ["REQUEST_METHOD"] == "HEAD":
            everywhere(environ | {"REQUEST_METHOD": "GET"}, start)
            return []
        return everywhere(environ, start)

    server.set_app(answer)


async def answered_before(_: Request) -> Response:
    """`service.protocol` answers these; the route is there for its path's other methods.

    Starlette takes a path that ends in a line feed for the same one.
    """
    raise NotFound("No such route.")


def ready(transport: Transport, answering: Callable[[], bool]) -> dict[str, Any]:
    """The facts of a worker that will answer.

    Raises:
        NotReady, Draining: none will.
    """
    refuse_unready(transport.phase)
    for facts in transport.told_on(transport.serving):
        if not answering():
            raise NotReady("The model worker does not answer.")
        return facts
    raise NotReady("No worker is ready; another is being started.")


def application(app: Starlette) -> ASGIApp:
    """The routes of `app` without its layers: the outermost would answer every error with a 500 before we see it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app  # with it Starlette raises its 404 and 405 instead of answering
        try:
            await app.router(scope, receive, send)
        except HTTPException as error:
            raise translated(error) from None

    return answer


def translated(error: HTTPException) -> ServiceError:
    """Starlette's 404 and 405 as ours."""
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed("This route has other methods.", {"allow": allowed})
    return NotFound("No such route.")
