"""An HTTP process's end of the transport: admission, slots, deadlines, and who waits for which answer."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from itertools import count
from math import ceil, inf
from time import monotonic

from service.board import SIDES, WORD_BYTES, whole_words
from service.canaries import PASSES, Canaries
from service.comparison import compare
from service.errors import (
    AtCapacity,
    DeadlineExceeded,
    NotFound,
    NotReady,
    Overloaded,
    ServiceError,
    TooLarge,
    TooManyImages,
)
from service.metrics import QUEUE_BYTES, QUEUE_DEPTH, SHADOWED, SKIPPED, Metrics
from service.outlet import Outlet
from service.pace import Pace
from service.pending import NONE, Pending
from service.slots import Slots
from service.transport import (
    ABANDONED,
    CANARY,
    CLAIMED,
    CLAIMER,
    HEADER_BYTES,
    MESSAGE_BYTES,
    NO_TRACE,
    NO_UID,
    TRACE,
    UID,
    Answer,
    Item,
    Trace,
    Transport,
)
from service.versions import Version, Versions

LATE = "The request's deadline passed before it was answered."
LOST = "The model worker was lost twice with this image; try again."
LEFT = "The version of the model that had this image was taken away; try again."
SHADOWS = 64  # so many images wait for the version that is compared, at most; of others it gets no copy
LONGEST_RETRY_S = 60
OUTAGE_S = 0.5  # of a longer silence the service time learns nothing
TICK_S = 0.25
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)  # a grey PNG


class Channel:
    """Sends images to the workers and brings their answers to whoever waits for them.

    A slot is freed by the worker's answer, also when nobody waits for it any more: until then it may be read. What a
    lost worker had is sent again, once.
    """

    def __init__(
        self,
        transport: Transport,
        process: int,
        capacity: int,
        metrics: Metrics,
        versions: Versions | None = None,
        expected: Callable[[], Pace] = Pace,
    ) -> None:
        """Of the service's `capacity` (images) this process has its equal share, at least one."""
        self.transport = transport
        self.metrics = metrics
        self.process = process
        self.capacity = max(1, capacity // transport.processes)
        start = transport.slots_start + process * transport.room
        self.slots = Slots(start, start + transport.room)
        self.waiting: dict[int, tuple[Item, Pending, int]] = {}
        self.images = 0  # that wait; canaries are none
        self.bytes = 0  # of the slots that are taken
        self.retried: set[int] = set()
        self.versions = versions or Versions(transport)
        self.uids = count(NO_UID + 1)
        self.expected, self.pace, self.paced_for = expected, expected(), self.versions.serving
        self.canaries = Canaries(transport, self.send_canary)
        self.loop = asyncio.get_running_loop()
        self.alarm = self.loop.call_soon(self.expire)  # rings at `earliest`, or before
        self.earliest = inf
        self.ticking = self.loop.call_later(TICK_S, self.tick)
        self.arena, self.words = transport.arena, transport.words
        self.outlets = [Outlet(sender, self.show) for sender, _ in transport.requests]
        self.on_side = [0] * SIDES  # items
        self.receiver = transport.answers[process][1]
        self.receiver.setblocking(False)
        self.loop.add_reader(self.receiver, self.take_answers)

    def close(self) -> None:
        """Stop listening; let the workers see that this process sends no more."""
        self.alarm.cancel()
        self.ticking.cancel()
        self.loop.remove_reader(self.receiver)
        for outlet in self.outlets:
            outlet.close()

    def submit(
        self,
        bodies: Sequence[bytes],
        top_k: int,
        deadline: float,
        done: Callable[[Sequence[Answer]], None],
        failed: Callable[[ServiceError], None],
        *,
        pixels: bool = False,
        trace: Trace = NO_TRACE,
        version: Version | None = None,
    ) -> Pending:
        """Accept all `bodies` of a request or none; see `Pending` for what follows. One may ask for a `version`.

        Raises:
            NotFound: that version is here no more.
            AtCapacity: too many images or bytes wait already.
            Overloaded: so many wait that it would not be answered by its deadline, or within the objective.
            TooManyImages, TooLarge: they would not fit if nothing else waited.
        """
        lengths = [slot_bytes(len(body)) for body in bodies]
        self.admit(lengths, deadline)
        named = version is not None
        version = self.enter(len(bodies), version, canary=top_k == CANARY)
        try:
            offsets = self.place(bodies, lengths, trace)
        except AtCapacity:
            self.waits(version.side, -len(bodies))
            raise
        if not self.waiting:
            self.pace.idle()
        pending = Pending(len(bodies), version, deadline, done, failed)
        pending.named = named
        counted = top_k != CANARY
        if counted:
            self.images += len(bodies)
        accepted = monotonic()
        for position, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
            item = Item(self.process, next(self.uids), offset, len(body), top_k, accepted, deadline, pixels)
            self.send(item, pending, position)
        if counted and self.transport.shadows and version.side == self.transport.serving:
            self.shadow(bodies, item, pending)
        if deadline < self.earliest:
            self.wake(deadline)
        return pending

    def place(self, bodies: Sequence[bytes], lengths: Sequence[int], trace: Trace = NO_TRACE) -> list[int]:
        """Lay all bodies into slots or none; where the slots are."""
        offsets: list[int] = []
        for length in lengths:
            offset = self.slots.take(length)
            if offset is None:
                for taken, given_back in zip(offsets, lengths, strict=False):
                    self.slots.give(taken, given_back)
                raise AtCapacity("The room for waiting bodies is full. Try again soon.", self.retry_after())
            offsets.append(offset)
        for body, offset in zip(bodies, offsets, strict=True):
            start = offset + HEADER_BYTES
            self.arena[start : start + len(body)] = body
            for at, word in enumerate(trace, offset // WORD_BYTES + TRACE):
                self.words[at] = word
        self.bytes += sum(lengths)
        return offsets

    def enter(self, images: int, wanted: Version | None = None, *, canary: bool = False) -> Version:
        """The version for so many images.

        The board shows them on its side before that is looked at again, so that no worker leaves whom they are sent to.
        """
        while True:
            version = wanted or (self.versions.serving if canary else self.versions.choose())
            self.waits(version.side, images)
            if self.transport.opened(version.side) and self.transport.written(version.side) == version.written:
                return version
            self.waits(version.side, -images)
            if wanted:
                raise NotFound(f"This service has no version {version.manifest.version} any more.")

    def waits(self, side: int, images: int) -> None:
        """So many more items are on a side."""
        self.on_side[side] += images
        self.transport.waits(self.process, side, self.on_side[side])

    def shadow(self, bodies: Sequence[bytes], item: Item, pending: Pending) -> None:
        """Send copies to the version that does not answer, where there is room; its answers are compared."""
        other = self.versions.on(1 - pending.version.side)
        lengths = [slot_bytes(len(body)) for body in bodies]
        crowded = 2 * (self.bytes + sum(lengths)) > self.transport.room
        if crowded or self.on_side[other.side] + len(bodies) > SHADOWS:
            self.metrics.add(SHADOWED, SKIPPED, n=len(bodies))
            return
        try:
            offsets = self.place(bodies, lengths)
        except AtCapacity:
            self.metrics.add(SHADOWED, SKIPPED, n=len(bodies))
            return
        self.waits(other.side, len(bodies))
        if not self.transport.opened(other.side):  # since just now; see `enter`
            self.waits(other.side, -len(bodies))
            for body, offset in zip(bodies, offsets, strict=True):
                self.give(offset, len(body))
            return
        twin = Pending(len(bodies), other, item.deadline, ignore, ignore)
        twin.twin, pending.twin = pending, twin
        for position, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
            copy = item._replace(uid=next(self.uids), offset=offset, length=len(body), shadow=True)
            self.send(copy, twin, position)

    def admit(self, lengths: Sequence[int], deadline: float) -> None:
        """Refuse at the door what there is no room or no time for; `lengths` are of slots."""
        if len(lengths) > self.capacity:
            raise TooManyImages(f"The request has {len(lengths)} images; the capacity is {self.capacity}.")
        if sum(lengths) > self.transport.room:
            raise TooLarge(f"The request's images are larger than the capacity of {self.transport.room} bytes.")
        if self.images + len(lengths) > self.capacity:
            raise AtCapacity(
                f"{self.images} images are waiting; the capacity is {self.capacity}. Try again soon.",
                self.retry_after(),
            )
        wait, left = self.pace.wait(self.images + len(lengths)), deadline - monotonic()
        if left <= 0:
            raise DeadlineExceeded(LATE)
        if self.images and wait > left:
            raise Overloaded(
                f"{self.images} images are waiting; an answer would take {wait:.1f} s, after the request's deadline.",
                self.retry_after(wait - left),
            )
        if (excess := self.pace.excess(self.images)) > 0:
            raise Overloaded(
                f"{self.images} images are waiting; an answer would take longer than this service's objective.",
                self.retry_after(excess),
            )

    def retry_after(self, seconds: float = inf) -> dict[str, str]:
        """The header that asks to come back when what waits now, or so many `seconds` of it, has been answered."""
        until = min(seconds, self.pace.wait(self.images), LONGEST_RETRY_S)
        return {"retry-after": str(max(1, ceil(until)))}

    def send(self, item: Item, pending: Pending, position: int) -> None:
        """Send an item whose body lies in its slot, under a uid that no other has had."""
        self.words[item.offset // WORD_BYTES + UID] = pending.uids[position] = item.uid
        self.waiting[item.uid] = item, pending, position
        self.outlets[pending.version.side].send(item)

    def cancel(self, pending: Pending) -> None:
        """Nobody waits any more: what has not reached the model yet never will."""
        pending.forget()
        for uid in pending.uids:
            if uid in self.waiting:
                self.words[self.waiting[uid][0].offset // WORD_BYTES + UID] = NO_UID

    def tick(self) -> None:
        """Look at what no image tells."""
        self.ticking = self.loop.call_later(TICK_S, self.tick)
        self.canaries.look()
        self.show()
        if self.versions.serving is not self.paced_for:  # another version, which may be faster or slower
            self.pace, self.paced_for = self.expected(), self.versions.serving

    def send_canary(self) -> Pending:
        """Ask by an image of our own; see `Canaries`."""
        return self.submit([PIXEL], CANARY, inf, ignore, ignore)

    def wake(self, deadline: float) -> None:
        """Look at deadlines again at this one."""
        self.alarm.cancel()
        self.earliest = deadline
        self.alarm = self.loop.call_later(deadline - monotonic(), self.expire)

    def expire(self) -> None:
        """Fail what is out of time; one alarm does for all, at the earliest deadline of those that wait."""
        now, self.earliest = monotonic(), inf
        late = {pending for _, pending, _ in self.waiting.values() if pending.deadline <= now}
        for pending in late:
            pending.fail(DeadlineExceeded(LATE))
            self.cancel(pending)
        left = min((pending.deadline for _, pending, _ in self.waiting.values() if pending.deadline > now), default=inf)
        if left < inf:
            self.wake(left)

    def show(self) -> None:
        """Let the gauges say how much waits: once for all that come or leave together."""
        self.metrics.set(QUEUE_DEPTH, self.images)
        self.metrics.set(QUEUE_BYTES, self.bytes)

    def take_answers(self) -> None:
        """Complete the futures of the answers in one message; others come in a later turn of the event loop."""
        try:
            message = self.receiver.recv(2 * MESSAGE_BYTES)
        except BlockingIOError:
            return
        if not message:
            self.loop.remove_reader(self.receiver)
            return
        served, serving = 0, self.transport.serving
        for answer in Answer.unpack_all(message):
            if answer.uid == NO_UID:
                self.take_news(answer)
            elif answer.uid in self.waiting:
                item, pending, _ = self.waiting[answer.uid]
                if answer.predictions and not item.shadow:
                    served += 1
                    if pending.version.side == serving:
                        self.canaries.answered()
                self.free(answer.uid, answer)
        self.show()
        if served:
            self.pace.learn(served, self.images + served, max(OUTAGE_S, PASSES * self.canaries.slowest))

    def free(self, uid: int, answer: Answer) -> None:
        """The item's slot is read no more, and this is its answer."""
        item, pending, position = self.waiting.pop(uid)
        self.retried.discard(uid)
        self.words[item.offset // WORD_BYTES + UID] = NO_UID
        self.give(item.offset, item.length)
        self.waits(pending.version.side, -1)
        if item.counted:
            self.images -= 1
        pending.put(position, answer)
        twin = pending.twin
        if twin and not pending.missing and not twin.missing:
            served, shadow = (twin, pending) if item.shadow else (pending, twin)
            compare(self.metrics, served.answers, shadow.answers)
            pending.twin = twin.twin = None

    def give(self, offset: int, length: int) -> None:
        """Free the slot of a body of this length."""
        self.slots.give(offset, slot_bytes(length))
        self.bytes -= slot_bytes(length)

    def take_news(self, answer: Answer) -> None:
        """A worker is lost, or all of a side, or all are for good."""
        if answer.code == ABANDONED:
            self.leave(*map(int, answer.detail.split()))
        elif answer.code:
            for uid, (_, pending, _) in list(self.waiting.items()):
                pending.fail(NotReady(answer.detail))
                self.free(uid, NONE)
        else:
            ((pid, _),) = answer.predictions
            for uid in list(self.waiting):
                self.send_again(uid, pid)

    def send_again(self, uid: int, lost: int) -> None:
        """Send an item again if the `lost` worker (a process id) had it, or if nobody is known to have it."""
        item, pending, position = self.waiting[uid]
        at = item.offset // WORD_BYTES
        claimed = self.words[at + CLAIMED] == uid
        if claimed and self.words[at + CLAIMER] != lost:
            return
        if not pending.awaited:
            self.free(uid, NONE)
        elif claimed and uid in self.retried:  # it may be what workers die of
            self.free(uid, Answer(uid, [], NotReady.code, LOST))
        else:
            del self.waiting[uid]
            self.send(item._replace(uid=next(self.uids)), pending, position)
            if claimed or uid in self.retried:
                self.retried.add(pending.uids[position])
            self.retried.discard(uid)

    def leave(self, side: int, written: int) -> None:
        """Nobody works on that version any more: requests without any answer go to the one that serves.

        But for those that ask for that version and no other.
        """
        serving = self.versions.serving
        left = [
            (uid, *told)
            for uid, told in self.waiting.items()
            if (told[1].version.side, told[1].version.written) == (side, written)
        ]
        whole = {pending for _, _, pending, _ in left if pending.awaited and pending.missing == len(pending.uids)}
        for uid, item, pending, position in left:
            if pending in whole and not (item.shadow or pending.named):
                del self.waiting[uid]
                self.retried.discard(uid)
                self.waits(side, -1)
                self.waits(serving.side, 1)
                pending.version = serving
                self.send(item._replace(uid=next(self.uids)), pending, position)
            else:
                pending.fail(NotReady(LEFT))
                self.free(uid, NONE)


def slot_bytes(length: int) -> int:
    """What a body of this length takes of the arena."""
    return HEADER_BYTES + whole_words(length + WORD_BYTES - 1)


def ignore(_: object) -> None:
    """What comes of a canary."""
