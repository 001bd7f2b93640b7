"""The routes by which operators change the version that serves, behind keys of their own; without these there are none.

    GET /models                        versions, what is under way, how the last orders ended
    POST /models/load                  {"version": "2"}, and "promote": true to let it serve as soon as it is ready
    POST /models/shadow | promote      {}, or {"version": "2"} to be sure of which
    POST /models/share                 {"share": 0.1}
    POST /models/rollback              {}

Of several models each has the same under /models/NAME, and GET /models tells of all. An order is answered at once, 202;
`ended` tells by its `id` how it ended.
"""

import json
from asyncio import timeout
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.board import STATE
from service.call import refuse_unready
from service.errors import AtCapacity, BadJson, BadParameter, SlowClient, TooLarge
from service.keys import Keys
from service.metrics import MODELS_ROUTE
from service.model import Model, named, nameless
from service.rollout import ACTIONS, LOAD, PROMOTE, ROLLBACK, SHADOW, SHARE, Order

LONGEST_ORDER = 4096  # bytes
TAKEN: dict[str, set[str]] = {
    LOAD: {"version", "promote"},
    SHADOW: {"version"},
    SHARE: {"version", "share"},
    PROMOTE: {"version"},
    ROLLBACK: set(),
}


class Wish(BaseModel):
    """What comes with an order."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: str | None = Field(None, max_length=131)
    share: float | None = Field(None, ge=0, le=1)
    promote: bool = False


def routes(models: Sequence[Model], admins: Keys) -> Iterator[Route]:
    """What operators may ask an HTTP process."""

    def keyed(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer_if_keyed(request: Request) -> Response:
            admins.check(dict(request.scope["headers"]))
            return await answer(request)

        return answer_if_keyed

    async def every(_: Request) -> Response:
        return JSONResponse({"models": {model.name: await state(model) for model in models}})

    def telling(model: Model) -> Callable[[Request], Awaitable[Response]]:
        async def tell(_: Request) -> Response:
            return JSONResponse(await state(model))

        return tell

    def ordering(model: Model, action: str) -> Callable[[Request], Awaitable[Response]]:
        async def accept(request: Request) -> Response:
            refuse_unready(model.transport.phase)
            wish = wished(action, await limited(request, model.settings.body_timeout_ms / 1000))
            order = Order(uuid4().hex, action, wish.version, wish.share or 0.0, wish.promote)
            try:
                model.transport.orders[0].send(json.dumps(asdict(order)).encode())
            except BlockingIOError:
                raise AtCapacity("Many orders wait already. Try again soon.") from None
            return JSONResponse({"id": order.id, "action": action}, 202)

        return accept

    if len(models) > 1:
        yield Route(MODELS_ROUTE, keyed(every), methods=["GET"])
        for action in ACTIONS:
            yield Route(f"{MODELS_ROUTE}/{action}", keyed(nameless(MODELS_ROUTE, models)), methods=["POST"])
    for path, model in named(MODELS_ROUTE, models):
        yield Route(path, keyed(telling(model)), methods=["GET"])
        for action in ACTIONS:
            yield Route(f"{path}/{action}", keyed(ordering(model, action)), methods=["POST"])


async def state(model: Model) -> dict[str, Any]:
    """A model's versions, and how its last orders ended."""
    there: list[str] = []
    with suppress(OSError):
        there = await run_in_threadpool(model.store.names)
    told: dict[str, Any] = json.loads(model.transport.document(STATE))
    return told | {"available": there}


async def limited(request: Request, seconds: float) -> bytes:
    """The body, which is short, and may take so long."""
    body = b""
    try:
        async with timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_ORDER:
                    raise TooLarge(f"An order has at most {LONGEST_ORDER} bytes.")
    except TimeoutError:
        raise SlowClient("The order did not come in time.", {"connection": "close"}) from None
    return body


def wished(action: str, body: bytes) -> Wish:
    """What an order's JSON says, if that is what the action needs.

    Raises:
        BadJson, BadParameter: it is not.
    """
    try:
        wish = Wish.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors()[0]
        kind = BadJson if first["type"] in ("json_invalid", "model_type") else BadParameter
        where = ".".join(map(str, first["loc"])) or "The body"
        raise kind(f"{where}: {first['msg']}.") from None
    if unfit := wish.model_fields_set - TAKEN[action]:
        raise BadParameter(f"{', '.join(sorted(unfit))}: not for {action}.")
    if action == LOAD and not wish.version:
        raise BadParameter(
            'Say which version: {"version": "NAME"}; GET /models tells which there are, of one model GET /models/NAME.'
        )
    if action == SHARE and wish.share is None:
        raise BadParameter('Say which share of the requests, from 0 to 1: {"share": 0.1}.')
    return wish
