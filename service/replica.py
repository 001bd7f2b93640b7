"""A replica on Ray Serve, an extra (`darkroom[ray]`): the service's own endpoints, batching and engine in one process.

    Ray's HTTP proxies -> Replica: Front -> Call -> Channel -> arena -> Pipeline's threads -> engine

Ray places replicas on nodes, chooses one for each request, replaces what is lost, scales with what is under way:

    serve run service.replica:app model=artifacts/model.pt

deploy/ray/serve.yaml is a configuration to start from; docs/ray.md tells when this pays and what it costs.
"""

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from threading import Thread
from time import monotonic, sleep
from typing import Any, cast

import ray
from prometheus_client import CollectorRegistry
from ray import serve
from ray.util.metrics import Gauge
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models import cores
from service import keys, logs, settings
from service.batching import Pipeline
from service.board import READY
from service.call import LONGEST_TIMEOUT_MS, Call, Endpoint
from service.crew import Berth, Crew
from service.edition import Found, look_for_models
from service.errors import DeadlineExceeded
from service.front import Front
from service.keys import Keys
from service.loading import load
from service.metrics import Metrics
from service.model import Model
from service.protocol import LATE_BODY
from service.routes import ready
from service.settings import ADMIN_KEYS_VARIABLE, Settings, SettingsError
from service.versions import Version

# Of a service with processes, connections and versions of its own, which here are Ray's.
NOT_HERE = {
    *("host", "port", "metrics_port", "workers", "spares", "http_processes", "max_connections"),
    *("header_timeout_ms", "body_timeout_ms", "admin_keys_file", "feedback", "keep_images", "keep_bytes", "keep_days"),
    *("drift_window_s", "tracing"),
}
OF_THE_IMAGE = {"host"}  # which the container sets for the other server
BEYOND = 64  # requests that Ray sends a replica beyond its capacity, so that it refuses them itself
HEALTH_S = 2.0
TELL_S = 2.0


def app(args: Mapping[str, Any]) -> serve.Application:
    """The application of a Serve configuration; `args` are the service's settings, as `model` and `dtype`.

    Raises:
        SettingsError, ArtifactError: one is unknown, out of range or Ray's to decide; or there is no such model.
    """
    settings.refuse_unknown(os.environ)
    made = settings.made(**args)
    wrong = NOT_HERE & (made.model_fields_set - OF_THE_IMAGE | {*args})
    if wrong or ADMIN_KEYS_VARIABLE in os.environ:
        names = ", ".join(sorted(wrong) or [ADMIN_KEYS_VARIABLE])
        raise SettingsError(f"{names}: not a setting of a replica; see docs/ray.md")
    if "," in made.device:
        raise SettingsError(f"--device {made.device}: a replica has one device; see docs/ray.md")
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        max_ongoing_requests=made.capacity + BEYOND,
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=LONGEST_TIMEOUT_MS / 1000,
    )
    return cast(serve.Application, deployment.bind(dict(args), look_for_models(made.model)))


class Replica:
    """One process with its engine, or several models'; Ray's proxies speak HTTP with the clients."""

    def __init__(self, args: Mapping[str, Any], found: Sequence[Found]) -> None:
        """Load, prove and warm; Ray sends requests once this is done."""
        began = monotonic()
        made = settings.made(**args, feedback=False)
        logs.configure(made.log_format)
        known = keys.load(made.api_keys_file, os.environ)
        self.models = [Model(one, made, known, 1, never) for one in found]
        self.front = Front(Starlette(), self.models, made, known, Keys())
        for model in self.models:
            model.transport.connect()
            pipeline = pipeline_of(model, made, sharing(len(found)))
            model.transport.tell(0, pipeline.facts(monotonic() - began))
            model.transport.phase = READY
            Thread(target=pipeline.run, args=(0,), name="pipeline", daemon=True).start()
        self.front.begin(0)
        Thread(target=tell_ray, args=(self.front.scrape.registry(),), name="metrics", daemon=True).start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray sends requests to."""
        return Door(self.front)

    def check_health(self) -> None:
        """Ray replaces a replica of which this fails."""
        for model in self.models:
            ready(model)


def never(model: Model, crew: Crew, berth: Berth) -> None:
    """A replica starts no workers."""


def sharing(models: int) -> int:
    """How many models like one of this replica's share the node's cores: its part is what Ray has assigned."""
    context: Any = ray.get_runtime_context()
    assigned = float(context.get_assigned_resources().get("CPU", 0))
    return math.ceil(cores.available() / max(1.0, assigned)) * models


def pipeline_of(model: Model, settings: Settings, sharing: int) -> Pipeline:
    """A model's engine and what batches for it, as a worker of the service has it."""
    device = "cpu" if settings.device == "auto" else settings.device
    engine = load(
        model.edition, settings.device, device, settings.dtype, settings.max_batch_size, sharing, nvjpeg=settings.nvjpeg
    )
    metrics = Metrics(model.manifest.classes)
    metrics.cells = model.transport.cells(model.transport.processes)
    return Pipeline(engine, model.transport, settings, metrics)


class Door:
    """The service as an ASGI application."""

    def __init__(self, front: Front) -> None:
        """Where `service.protocol` takes requests off the wire, here they come from Ray."""
        self.front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send, self.front)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        # The application's prefix, which Ray leaves in the path, is nothing to routes and labels.
        scope = {**scope, "path": scope["path"].removeprefix(scope.get("root_path", "")), "root_path": ""}

        async def send_once_named(message: Message) -> None:
            if "headers" in message:  # Ray adds the request's id, which it has given or passed on
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        found = self.front.endpoints.find(scope["path"]) if scope["method"] == "POST" else None
        if found:
            await self.predict(*found, scope, receive, send_once_named)
        else:
            await self.front.boundary(scope, receive, send_once_named)

    async def predict(
        self, endpoint: Endpoint, version: Version | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let a call have the body as it comes, and send what it replies."""
        replied: asyncio.Future[tuple[int, str, bytes]] = asyncio.get_running_loop().create_future()

        def reply(*given: Any) -> None:
            if not replied.done():  # else Ray has given up meanwhile
                replied.set_result(given)

        headers = [(name.lower(), value) for name, value in scope["headers"]]
        call = Call(endpoint, headers, scope["query_string"], reply, version)
        try:
            call.begin()
            if not await received(call, replied, receive):
                call.leave()
                return
            status, head, body = await replied
        except BaseException:  # Ray cancels when the client has left, or fails when its proxy has
            if replied.cancelled() or not replied.done():
                call.leave()
            raise
        lines = [line.partition(": ") for line in head.split("\r\n")[:-1]]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, _, value in lines]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


async def received(call: Call, replied: "asyncio.Future[Any]", receive: Receive) -> bool:
    """Give a call its body until that is whole or refused; whether the client is still there."""
    body, more = bytearray(), True
    while more and not replied.done():
        try:
            async with asyncio.timeout(call.deadline - monotonic()):
                message = await receive()
        except TimeoutError:
            call.refuse(DeadlineExceeded(LATE_BODY))
            break
        if message["type"] == "http.disconnect":
            return False
        body += message.get("body", b"")
        more = message.get("more_body", False)
        call.growing(len(body))
    if not replied.done():
        call.complete(bytes(body))
    return True


async def lifespan(receive: Receive, send: Send, front: Front) -> None:
    """Ray's end of a replica is the front's."""
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    front.close()
    await send({"type": "lifespan.shutdown.complete"})


def tell_ray(counted: CollectorRegistry) -> None:
    """Let Ray's agents show what this replica counts: `ray_darkroom_...`, each replica apart."""
    made: dict[str, Gauge] = {}
    while True:
        for family in counted.collect():
            for sample in family.samples:
                if sample.name not in made:
                    made[sample.name] = Gauge(sample.name, family.documentation, tuple(sample.labels))
                made[sample.name].set(sample.value, sample.labels)
        sleep(TELL_S)
