"""Another version of the model: loaded beside the one that serves, proved, tried on live traffic, and put in its place.

    nothing -> loading -> ready -> (shadow | share) -> promoted: it serves, and the version before it leaves
                  └────────┴─────────────┴───────────> taken away, by order or because its workers fail

Everything here happens in the main process, in the supervisor's thread. A request belongs to one version from its
admission to its reply; workers leave once nothing is on their side of the transport, so nothing is lost or mixed.
"""

import json
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from time import time
from typing import Any

from service.board import STATE
from service.crew import Crew
from service.drift import Drift
from service.edition import Edition, inspected
from service.logs import logger
from service.metrics import FAILED, PROMOTED, SWAPS, Metrics
from service.store import Store
from service.transport import MESSAGE_BYTES, Transport

ACTIONS = LOAD, PROMOTE, SHADOW, SHARE, ROLLBACK = "load", "promote", "shadow", "share", "rollback"
SERVES, LOADS, READY, LEAVES = "serving", "loading", "ready", "leaving"
ENDED = 10  # orders
POINTER = "pointer"  # the id of orders that the pointer gives
WATCH_S = 1.0  # between two looks at the folder


class Refusal(Exception):
    """Why an order is not carried out; one line."""


@dataclass(frozen=True)
class Order:
    """What an operator wants; `id` is how the outcome is found again."""

    id: str
    action: str
    version: str | None = None
    share: float = 0.0
    promote: bool = False  # as soon as it is ready


class Rollout:
    """Which versions there are and what becomes of them; one order at a time."""

    def __init__(
        self, model: str, transport: Transport, metrics: Metrics, crews: Sequence[Crew], store: Store, drift: Drift
    ) -> None:
        """The first crew of the `model` of this name serves; `metrics` are the main process's."""
        self.model = model
        self.transport, self.metrics, self.crews, self.store, self.drift = transport, metrics, crews, store, drift
        self.order: Order | None = None  # that takes time
        self.ended: deque[dict[str, Any]] = deque(maxlen=ENDED)  # how orders ended, the last one first
        self.previous: Path | None = None  # what served before
        self.checked: SimpleQueue[Edition | str] | None = None  # while a file is looked at
        self.leaving: Crew | None = None
        self.empty = 0  # looks at which nothing was on the leaving side
        self.watched = 0.0  # when the folder was last looked at
        self.carry_out = dict(
            zip(ACTIONS, (self.load, self.promote, self.shadow, self.share, self.rollback), strict=True)
        )
        self.pointed: str | None = None  # what the pointer named when it was followed last
        with suppress(OSError):
            self.pointed = store.current()
        self.refused: str | None = None  # what it named when that was told last
        self.found: tuple[str | None, str] = self.pointed, ""  # what it names, and why that cannot be loaded
        self.reading: threading.Thread | None = None
        self.told = b""
        self.tell()

    @property
    def serving(self) -> Crew:
        """The crew that answers."""
        return self.crews[self.transport.serving]

    @property
    def candidate(self) -> Crew:
        """The other."""
        return self.crews[1 - self.transport.serving]

    @property
    def trying(self) -> bool:
        """Whether there is a candidate that does not leave."""
        return self.candidate.edition is not None and self.candidate is not self.leaving

    def look(self, now: float) -> None:
        """Carry out what is ordered, and go on with what is under way; `now` in seconds of CLOCK_MONOTONIC."""
        if trouble := self.candidate.trouble:
            self.candidate.trouble = ""
            self.fail(self.order or Order("", "candidate"), trouble)
        for order in self.orders():
            self.attempt(order)
        self.let_leave()
        self.advance()
        if now - self.watched > WATCH_S:
            self.watched = now
            self.watch()
        self.tell()

    def orders(self) -> list[Order]:
        """What has been ordered since the last look."""
        found: list[Order] = []
        with suppress(BlockingIOError):
            while message := self.transport.orders[1].recv(MESSAGE_BYTES):
                found.append(Order(**json.loads(message)))
        return found

    def attempt(self, order: Order) -> None:
        """Begin with an order, or say why not."""
        try:
            self.carry_out[order.action](order)
        except Refusal as error:
            self.close(order, str(error))

    def load(self, order: Order) -> None:
        """Look at a version's file, beside this thread: it may be large. The rest follows in `advance`."""
        self.refuse_busy()
        if self.trying:
            raise Refusal("another version is loaded already; promote it, or take it away by rollback")
        try:
            path = self.store.path(order.version or "")
        except LookupError as error:
            raise Refusal(str(error)) from None
        except OSError as error:
            raise Refusal(f"the folder of the versions cannot be read: {error.strerror}") from None
        self.begin(order, path)

    def begin(self, order: Order, path: Path) -> None:
        """Look at the file of the version to come."""
        serving = self.serving.edition
        assert serving, "the crew that serves has a version"
        self.order, self.checked = order, SimpleQueue()
        told = (path, serving, self.checked)
        threading.Thread(target=lambda: told[2].put(inspected(*told[:2])), name="artifact", daemon=True).start()

    def promote(self, order: Order) -> None:
        """Let the candidate serve."""
        self.refuse_unready(order)
        self.take_over(order)

    def shadow(self, order: Order) -> None:
        """Send the candidate copies of all requests, to compare."""
        self.refuse_unready(order)
        self.transport.divide(self.transport.serving, shadows=True)
        self.close(order)

    def share(self, order: Order) -> None:
        """Let the candidate answer a share of the requests; 0 takes it back."""
        if order.share:
            self.refuse_unready(order)
        self.transport.divide(self.transport.serving, order.share)
        self.close(order)

    def rollback(self, order: Order) -> None:
        """Take the candidate away; where there is none, load what served before and let it serve."""
        if self.order or self.trying:
            if self.order:
                self.close(self.order, "taken away while it was being loaded")
            self.checked = None
            if self.trying:
                self.part_with(self.candidate)
            self.close(order)
            return
        if self.previous is None:
            raise Refusal("there is no candidate, and no version has served before this one")
        self.begin(Order(order.id, order.action, self.previous.stem, promote=True), self.previous)

    def refuse_busy(self) -> None:
        """One thing after another."""
        if self.order:
            raise Refusal(f"version {self.order.version} is being loaded; wait, or take it away by rollback")

    def refuse_unready(self, order: Order) -> None:
        """Nothing can be done with a candidate that is not there, or is not the one that is meant."""
        edition = self.candidate.edition
        if not self.trying or not edition:
            raise Refusal("there is no other version; load one first")
        if order.version not in (None, edition.path.stem, edition.manifest.version):
            raise Refusal(f"the other version is {edition.path.stem}, not {order.version}")
        if not self.candidate.proved:
            raise Refusal("the other version is still loading")
        if len(self.transport.told_on(self.candidate.side)) < len(self.candidate.wanted):
            raise Refusal("a worker of the other version is being replaced; try again soon")

    def advance(self) -> None:
        """Go on with the order that takes time."""
        order, crew = self.order, self.candidate
        free = not self.leaving and crew.gone and not self.transport.waiting(crew.side)
        if order and self.checked and not self.checked.empty() and free:
            found, self.checked = self.checked.get(), None
            if isinstance(found, str):
                self.fail(order, found)
            else:
                self.transport.publish(crew.side, found.manifest.model_dump_json().encode())
                crew.begin(found, self.serving.load_seconds)
        elif order and crew.edition and not crew.proved:
            told = self.transport.told_on(crew.side)
            if len(told) >= len(crew.wanted):
                crew.prove(told[0]["plan"], max(facts["load_seconds"] for facts in told))
                self.transport.open(crew.side, to=True)
                if order.promote:
                    self.take_over(order)
                else:
                    self.close(order)

    def take_over(self, order: Order) -> None:
        """The candidate answers from now on; the version before finishes what it has."""
        old, new = self.serving, self.candidate
        assert old.edition, "the crew that serves has a version"
        assert new.edition, "it is ready"
        self.previous = old.edition.path
        for worker in self.transport.workers_on(new.side):
            if self.transport.told(worker):
                self.transport.answered(worker)  # its goldens, at least; and so nobody thinks that it does not
        self.transport.divide(new.side)
        self.metrics.add(SWAPS, PROMOTED)
        self.drift.expect(new.edition.manifest.validation_statistics)
        self.part_with(old)
        self.close(order)

    def part_with(self, crew: Crew) -> None:
        """Send a crew nothing more; it ends once it has nothing."""
        self.transport.divide(self.transport.serving)
        self.transport.open(crew.side, to=False)
        if crew.proved:
            self.leaving, self.empty = crew, 0
        else:
            crew.end()

    def let_leave(self) -> None:
        """End the crew that leaves: nothing was on its side at two looks, so whoever shows there has seen it closed."""
        if self.leaving:
            self.empty = 0 if self.transport.waiting(self.leaving.side) else self.empty + 1
            if self.empty > 1 or not self.leaving.edition:
                self.leaving.end()
                self.leaving.trouble = ""
                self.leaving = None

    def watch(self) -> None:
        """Follow the pointer, which is read beside this thread: a storage that hangs must not end the watch."""
        if self.reading and self.reading.is_alive():
            return
        pointed, trouble = self.found
        if pointed and pointed != self.pointed and not self.order:
            self.follow(pointed, trouble)
        self.reading = threading.Thread(target=self.read, name="pointer", daemon=True)
        self.reading.start()

    def read(self) -> None:
        """What the pointer names, and whether that is there."""
        with suppress(OSError):
            pointed, trouble = self.store.current(), ""
            try:
                self.store.path(pointed or "")
            except LookupError as error:
                trouble = str(error)
            self.found = pointed, trouble

    def follow(self, pointed: str, trouble: str) -> None:
        """Let the version that the pointer names serve, as soon as it can; until then why not is told once."""
        serving = self.serving.edition
        candidate = self.candidate.edition if self.trying else None
        promoted = candidate is not None and candidate.path.stem == pointed
        order = Order(POINTER, PROMOTE) if promoted else Order(POINTER, LOAD, pointed, promote=True)
        try:
            if promoted:
                self.promote(order)
            elif serving and serving.path.stem != pointed:
                if trouble:
                    raise Refusal(trouble)
                if candidate:
                    self.part_with(self.candidate)
                self.load(order)
        except Refusal as error:
            if pointed != self.refused:
                self.close(order, str(error))
            self.refused = pointed
        else:
            self.pointed, self.refused = pointed, None

    def fail(self, order: Order, reason: str) -> None:
        """The version before goes on."""
        self.metrics.add(SWAPS, FAILED)
        self.close(order, reason)

    def close(self, order: Order, reason: str = "") -> None:
        """An order has been carried out, or could not be."""
        if self.order is order:
            self.order = None
        reason = reason.replace(f"{self.store.folder}/", "")
        told = {name: value for name, value in asdict(order).items() if name in ("action", "version") and value}
        self.ended.appendleft({"id": order.id, **told, "done": not reason, "detail": reason, "at": round(time(), 3)})
        if reason:
            logger.error("an order failed", extra={"model": self.model} | told | {"reason": reason})
        else:
            logger.info("an order was carried out", extra={"model": self.model} | told)

    def tell(self) -> None:
        """Show on the board how things are."""
        crews = [self.serving, self.candidate]
        state = {
            "versions": [self.described(crew) for crew in crews if crew.edition],
            "previous": self.previous.stem if self.previous else None,
            "order": asdict(self.order) if self.order else None,
            "ended": list(self.ended),
        }
        text = json.dumps(state).encode()
        if text != self.told:
            self.told = text
            self.transport.publish(STATE, text)

    def described(self, crew: Crew) -> dict[str, Any]:
        """A version for people."""
        assert crew.edition, "only these are shown"
        manifest = crew.edition.manifest
        stage = READY if crew.proved else LOADS
        stage = SERVES if crew is self.serving else LEAVES if crew is self.leaving else stage
        share = self.transport.share if crew is not self.serving else 1 - self.transport.share
        return {
            "version": manifest.version,
            "file": crew.edition.path.name,
            "digest": manifest.digest,
            "stage": stage,
            "share": 0.0 if stage in (LEAVES, LOADS) else round(share, 6),
            "shadow": self.transport.shadows and stage == READY,
        }
