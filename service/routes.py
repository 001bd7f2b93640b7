"""The routes beside predictions: health, metrics, information, documentation, the page, and what `/v2` tells."""

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
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
from service.board import FAILED, SIDES
from service.call import refuse_unready
from service.errors import NO_ROUTE, MethodNotAllowed, NotFound, NotReady, ServiceError
from service.keys import Keys
from service.metrics import Cells, Counted, Scrape
from service.model import Model, named, nameless
from service.predict import ROUTE
from service.present import Present
from service.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TRITON = {"BYTES": "TYPE_STRING"}  # data types that its model configuration names otherwise
INFO = "/info"
Answering = Callable[[Request], Awaitable[Response]]
Answer = Callable[[Request], Any]  # also of one that is no coroutine
# Settings that are nobody's outside.
NO_LIMITS = {"model", "host", "port", "metrics_port", "api_keys_file", "admin_keys_file", "keep_images"}


def build(models: Sequence[Model], settings: Settings, keys: Keys, admins: Keys, scraping: Scrape) -> list[Route]:
    """The routes of an HTTP process: what is one model's is named (see `model.named`), the rest is all models'."""
    transport = models[0].transport  # the phase is on every board

    async def health(_: Request) -> Response:
        facts = [ready(model) for model in models]
        told = [{"name": model.name, "version": model.versions.serving.manifest.version} for model in models]
        one_or_all = {"models": told} if len(told) > 1 else {"model": told[0]}
        where = {"device": facts[0]["device"], "dtype": facts[0]["dtype"]}
        return JSONResponse({"status": "ready", **one_or_all, **where})

    async def readyz(_: Request) -> Response:
        for model in models:
            ready(model)
        return Response()

    async def livez(_: Request) -> Response:
        if transport.phase == FAILED:
            raise NotReady("The service has given up and is about to end.")
        return Response()

    async def scrape(_: Request) -> Response:
        return Response(await run_in_threadpool(scraping.text), headers={"content-type": METRICS_TYPE})

    def informing(told: Sequence[Model]) -> Answer:
        def info(request: Request) -> Response:
            keys.check(dict(request.scope["headers"]))
            facts = {model.name: informed(model, settings) for model in told}
            return JSONResponse({"models": facts} if len(told) > 1 else facts[told[0].name])

        return info

    def trying(model: Model) -> Answer:
        def tried(_: Request) -> Response:
            told, guarding = page.page(model.versions.serving.manifest, settings, keyed=bool(keys), named=several)
            return HTMLResponse(told, headers=guarding)

        return tried

    def indexed(_: Request) -> Response:
        told, guarding = page.index([model.name for model in models])
        return HTMLResponse(told, headers=guarding)

    def document() -> openapi.Json:
        given = {"keyed": bool(keys), "operators": bool(admins)}
        return openapi.document([one.versions.serving.manifest for one in models], settings, __version__, **given)

    several = len(models) > 1
    answers: dict[str, Answer] = {"/health": health, "/readyz": readyz, "/livez": livez}
    if settings.metrics_port is None:
        answers["/metrics"] = scrape
    if settings.info:
        answers |= {INFO: informing(models)} | {path: informing([model]) for path, model in named(INFO, models)}
    if settings.docs:
        answers["/openapi.json"] = lambda _: JSONResponse(document())
        answers["/docs"] = lambda _: HTMLResponse(openapi.page(document()))
        answers |= {path: trying(model) for path, model in named(page.ROUTE, models)}
        answers["/"] = indexed if several else answers.pop(page.ROUTE)
    answered = [ROUTE, *([feedback.ROUTE] if settings.feedback else ())]
    return [
        *(Route(path, answered_before, methods=["POST"]) for at in answered for path, _ in named(at, models)),
        *(Route(at, nameless(at, models), methods=["POST"]) for at in answered if several),
        *(Route(path, answer, methods=["GET"]) for path, answer in answers.items()),
        *described(models, livez, readyz),
        *(administration.routes(models, admins) if admins else ()),
    ]


def informed(model: Model, settings: Settings) -> dict[str, object]:
    """What `/info` tells of a model."""
    transport = model.transport
    facts: dict[str, object] = {
        "manifest": model.versions.serving.manifest.model_dump(mode="json"),
        "limits": settings.model_dump(mode="json", exclude=NO_LIMITS),
        "version": __version__,
    }
    if settings.keep_images:
        facts["images_kept"] = True
    for told in transport.told_on(transport.serving)[:1]:
        facts |= {"device": told["device"], "dtype": told["dtype"], "optimisation_steps": told["plan"]["steps"]}
        facts["speed"] = speed.of(told["plan"], settings).told()
    return facts


def described(models: Sequence[Model], livez: Answering, readyz: Answering) -> Iterator[Route]:
    """What the Open Inference Protocol tells of server and models; only the status of health and ready counts."""
    server = {"name": "darkroom", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    known = {model.name: model for model in models}

    async def index(_: Request) -> Response:
        rows = [(model, version) for model in models for version in model.versions.names()]
        return JSONResponse([{"name": one.name, "version": version, "state": state(one)} for one, version in rows])

    async def told(model: Model) -> Response:
        inputs, outputs = open_inference.tensors(model.manifest)
        document = {"name": model.name, "platform": "pytorch_torchscript", "inputs": inputs, "outputs": outputs}
        return JSONResponse(document | {"versions": model.versions.names()})

    async def is_ready(model: Model) -> Response:
        ready(model)
        return Response()

    async def config(model: Model) -> Response:
        return JSONResponse(configured(model))

    async def infer(_: Model) -> Response:
        return await answered_before(None)

    def of_one(answer: Callable[[Model], Awaitable[Response]]) -> Answering:
        async def answer_if_known(request: Request) -> Response:
            asked = request.path_params
            model = known.get(asked["model"])
            if model is None:
                raise NotFound(f"This service has the model{'s' * (len(known) > 1)} {', '.join(known)} alone.")
            versions = model.versions.names()
            if asked.get("version", versions[0]) not in versions:
                raise NotFound(f"The model {model.name} is here in version {' and '.join(versions)} alone.")
            return await answer(model)

        return answer_if_known

    async def serving(_: Request) -> Response:
        return JSONResponse(server)

    yield Route("/v2", serving, methods=["GET"])
    yield Route("/v2/health/live", livez, methods=["GET"])
    yield Route("/v2/health/ready", readyz, methods=["GET"])
    yield Route("/v2/repository/index", index, methods=["POST"])
    for at in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        yield Route(at, of_one(told), methods=["GET"])
        yield Route(f"{at}/ready", of_one(is_ready), methods=["GET"])
        yield Route(f"{at}/config", of_one(config), methods=["GET"])
        yield Route(f"{at}/infer", of_one(infer), methods=["POST"])


def configured(model: Model) -> dict[str, Any]:
    """A model's configuration as Triton has it, which tritonclient asks for."""
    config: dict[str, Any] = {"name": model.name, "platform": "pytorch_libtorch", "backend": "darkroom"}
    config["max_batch_size"] = 0
    for kind, tensors in zip(("input", "output"), open_inference.tensors(model.manifest), strict=True):
        config[kind] = [
            {"name": tensor["name"], "data_type": TRITON.get(tensor["datatype"], f"TYPE_{tensor['datatype']}")}
            | {"dims": tensor["shape"]}
            for tensor in tensors
        ]
    return config


def scrape_of(models: Sequence[Model], others: Sequence[Cells], settings: Settings) -> Scrape:
    """What `/metrics` shows, with the `others` that count requests no model answers; made in the main process."""

    def served() -> Iterator[tuple[str, ...]]:
        for model in models:
            for side in filter(model.transport.opened, range(SIDES)):
                for facts in model.transport.told_on(side):
                    yield model.name, facts["version"], facts["digest"], facts["device"], facts["dtype"]

    only = len(models) == 1
    counted = [
        Counted(model.name, model.metrics, [*model.transport.all_cells(), *(others if only else ())])
        for model in models
    ]
    if not only:
        counted.append(Counted("", models[0].metrics, others))
    transports = {model.name: model.transport for model in models}
    return Scrape(counted, served, Present(settings, transports, os.getpid()))


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


async def answered_before(_: Request | None) -> Response:
    """`service.protocol` answers these; the route is there for its path's other methods.

    Starlette takes a path that ends in a line feed for the same one.
    """
    raise NotFound(NO_ROUTE)


def ready(model: Model) -> dict[str, Any]:
    """The facts of a worker of the model that will answer.

    Raises:
        NotReady, Draining: none will.
    """
    transport = model.transport
    refuse_unready(transport.phase)
    for facts in transport.told_on(transport.serving):
        if not model.answering():
            raise NotReady(f"The worker of the model {model.name} does not answer.")
        return facts
    raise NotReady(f"No worker of the model {model.name} is ready; another is being started.")


def state(model: Model) -> str:
    """Whether a model is ready, as the Open Inference Protocol has it."""
    try:
        ready(model)
    except ServiceError:
        return "UNAVAILABLE"
    return "READY"


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
    return NotFound(NO_ROUTE)
