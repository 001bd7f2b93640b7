"""An HTTP process's end of the transport: admission, slots, deadlines, and who waits for which answer."""

import asyncio
import base64
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count, islice
from math import ceil, inf
from time import monotonic

from service.errors import (
    AtCapacity,
    DeadlineExceeded,
    NotReady,
    Overloaded,
    ServiceError,
    TooLarge,
    TooManyImages,
)
from service.metrics import QUEUE_BYTES, QUEUE_DEPTH, Metrics
from service.pace import Pace
from service.slots import Slots
from service.transport import (
    CANARY,
    CLAIMED,
    CLAIMER,
    HEADER_BYTES,
    MESSAGE_BODIES_BYTES,
    MESSAGE_BYTES,
    MESSAGE_IMAGES,
    NO_TRACE,
    NO_UID,
    REQUEST,
    TRACE,
    UID,
    WORD_BYTES,
    Answer,
    Item,
    Trace,
    Transport,
    whole_words,
)

NONE = Answer(NO_UID, [])
LATE = "The request's deadline passed before it was answered."
LOST = "The model worker was lost twice with this image; try again."
LONGEST_RETRY_S = 60
OUTAGE_S = 0.5  # of a longer silence the service time learns nothing
TICK_S = 0.25
CANARY_AFTER_S = 0.75  # without an answer
STALE_AFTER_S = 2.0  # without an answer, of a canary neither, nobody works
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)  # a grey PNG
PASSES = 3  # how many forward passes of a slow model such a silence may at least be


class Pending:
    """The images of one request on their way, and the answers that have come."""

    def __init__(
        self,
        count: int,
        deadline: float,
        done: Callable[[Sequence[Answer]], None],
        failed: Callable[[ServiceError], None],
    ) -> None:
        """`done` gets all answers in order, or `failed` the reason why not all come in time; never both."""
        self.answers: list[Answer] = [NONE] * count
        self.uids = [NO_UID] * count
        self.missing = count
        self.deadline = deadline
        self.done: Callable[[Sequence[Answer]], None] | None = done
        self.failed: Callable[[ServiceError], None] | None = failed

    def put(self, position: int, answer: Answer) -> None:
        """One answer has come."""
        self.answers[position] = answer
        self.missing -= 1
        if not self.missing and self.done is not None:
            self.done(self.answers)

    def fail(self, error: ServiceError) -> None:
        """Wait no longer."""
        failed = self.failed
        self.forget()
        if failed is not None:
            failed(error)

    def forget(self) -> None:
        """Nobody waits any more."""
        self.done = self.failed = None

    @property
    def awaited(self) -> bool:
        """Whether somebody still waits."""
        return self.done is not None


class Channel:
    """Sends images to the workers and brings their answers to whoever waits for them.

    A slot is freed by the worker's answer, also when nobody waits for it any more: until then it may be read. What a
    lost worker had is sent again, once.
    """

    def __init__(
        self, transport: Transport, process: int, capacity: int, metrics: Metrics, pace: Pace | None = None
    ) -> None:
        """Of the service's `capacity` (images) this process has its equal share, at least one."""
        self.transport = transport
        self.metrics = metrics
        self.process = process
        self.capacity = max(1, capacity // transport.processes)
        start = transport.slots_start + process * transport.share
        self.slots = Slots(start, start + transport.share)
        self.waiting: dict[int, tuple[Item, Pending, int]] = {}
        self.images = 0  # that wait; canaries are none
        self.retried: set[int] = set()
        self.backlog: deque[Item] = deque()
        self.flushing = False  # soon, or when the socket can take more
        self.uids = count(NO_UID + 1)
        self.pace = pace or Pace()
        self.canaries: list[Pending] = []  # that are not answered yet
        self.asked_at = -inf
        self.slowest = 0.0  # forward pass, seconds
        self.answered_at = monotonic()
        self.loop = asyncio.get_running_loop()
        self.alarm = self.loop.call_soon(self.expire)  # rings at `earliest`, or before
        self.earliest = inf
        self.ticking = self.loop.call_later(TICK_S, self.tick)
        self.arena, self.words = transport.arena, transport.words
        self.sender = transport.requests[0]
        self.receiver = transport.answers[process][1]
        self.sender.setblocking(False)
        self.receiver.setblocking(False)
        self.loop.add_reader(self.receiver, self.take_answers)

    def close(self) -> None:
        """Stop listening; let the workers see that this process sends no more."""
        self.alarm.cancel()
        self.ticking.cancel()
        self.loop.remove_reader(self.receiver)
        self.loop.remove_writer(self.sender)
        self.sender.close()

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
    ) -> Pending:
        """Accept all `bodies` of a request or none; see `Pending` for what follows.

        Raises:
            AtCapacity: too many images or bytes wait already.
            Overloaded: so many wait that it would not be answered by its deadline, or within the objective.
            TooManyImages, TooLarge: they would not fit if nothing else waited.
        """
        lengths = [slot_bytes(len(body)) for body in bodies]
        self.admit(lengths, deadline)
        offsets: list[int] = []
        for length in lengths:
            offset = self.slots.take(length)
            if offset is None:
                for taken, given_back in zip(offsets, lengths, strict=False):
                    self.slots.give(taken, given_back)
                raise AtCapacity("The room for waiting bodies is full. Try again soon.", self.retry_after())
            offsets.append(offset)
        if not self.waiting:
            self.pace.idle()
        pending = Pending(len(bodies), deadline, done, failed)
        accepted = monotonic()
        for position, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
            start = offset + HEADER_BYTES
            self.arena[start : start + len(body)] = body
            for place, word in enumerate(trace, offset // WORD_BYTES + TRACE):
                self.words[place] = word
            item = Item(self.process, NO_UID, offset, len(body), top_k, accepted, deadline, pixels)
            self.send(item, pending, position)
        self.metrics.add(QUEUE_BYTES, n=sum(lengths))
        if top_k != CANARY:
            self.images += len(bodies)
            self.metrics.add(QUEUE_DEPTH, n=len(bodies))
        if deadline < self.earliest:
            self.wake(deadline)
        return pending

    def admit(self, lengths: Sequence[int], deadline: float) -> None:
        """Refuse at the door what there is no room or no time for; `lengths` are of slots."""
        if len(lengths) > self.capacity:
            raise TooManyImages(f"The request has {len(lengths)} images; the capacity is {self.capacity}.")
        if sum(lengths) > self.transport.share:
            raise TooLarge(f"The request's images are larger than the capacity of {self.transport.share} bytes.")
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
        """Send an item whose body lies in its slot, under a uid of its own."""
        uid = next(self.uids)
        self.words[item.offset // WORD_BYTES + UID] = pending.uids[position] = uid
        item = item._replace(uid=uid)
        self.waiting[uid] = item, pending, position
        self.backlog.append(item)
        if not self.flushing:
            # At the end of this turn of the event loop, together with what its other requests bring.
            self.loop.call_soon(self.flush)
            self.flushing = True

    def cancel(self, pending: Pending) -> None:
        """Nobody waits any more: what has not reached the model yet never will."""
        pending.forget()
        for uid in pending.uids:
            if uid in self.waiting:
                self.words[self.waiting[uid][0].offset // WORD_BYTES + UID] = NO_UID

    def tick(self) -> None:
        """Ask by a canary, on the way of all images, whether they are answered, where no image tells."""
        self.ticking = self.loop.call_later(TICK_S, self.tick)
        self.slowest = max((facts["pass_seconds"] for facts in self.transport.all_told()), default=self.slowest)
        self.canaries = [canary for canary in self.canaries if canary.missing and canary.awaited]
        # One a worker and one more: a worker that has stopped may hold some.
        few = len(self.canaries) <= len(self.transport.all_told())
        now = monotonic()
        if few and now - max(self.told_at, self.asked_at) > CANARY_AFTER_S:
            self.asked_at = now
            with suppress(ServiceError):  # no room: images wait, and their answers will tell
                self.canaries.append(self.submit([PIXEL], CANARY, inf, ignore, ignore))

    def answering(self) -> bool:
        """Whether answers come, here or to another HTTP process that has more to ask."""
        return monotonic() - self.told_at < max(STALE_AFTER_S, PASSES * self.slowest)

    @property
    def told_at(self) -> float:
        """When an answer last told that images are answered, in seconds of CLOCK_MONOTONIC."""
        return max(self.answered_at, self.transport.last_answered())

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

    def flush(self) -> None:
        """Send what the socket takes; the rest follows when it can take more."""
        self.loop.remove_writer(self.sender)
        self.flushing = False
        while self.backlog:
            count = together(self.backlog)
            try:
                self.sender.send(b"".join(REQUEST.pack(*self.backlog[index]) for index in range(count)))
            except BlockingIOError:
                self.loop.add_writer(self.sender, self.flush)
                self.flushing = True
                return
            for _ in range(count):
                self.backlog.popleft()

    def take_answers(self) -> None:
        """Complete the futures of every answer that has come."""
        while True:
            try:
                message = self.receiver.recv(2 * MESSAGE_BYTES)
            except BlockingIOError:
                return
            if not message:
                self.loop.remove_reader(self.receiver)
                return
            served = 0
            for answer in Answer.unpack_all(message):
                if answer.uid == NO_UID:
                    self.take_news(answer)
                elif answer.uid in self.waiting:
                    served += bool(answer.predictions)
                    self.free(answer.uid, answer)
            if served:
                self.answered_at = monotonic()
                self.pace.learn(served, self.images + served, max(OUTAGE_S, PASSES * self.slowest))

    def free(self, uid: int, answer: Answer) -> None:
        """The item's slot is read no more, and this is its answer."""
        item, pending, position = self.waiting.pop(uid)
        self.retried.discard(uid)
        self.words[item.offset // WORD_BYTES + UID] = NO_UID
        self.slots.give(item.offset, slot_bytes(item.length))
        self.metrics.add(QUEUE_BYTES, n=-slot_bytes(item.length))
        if item.top_k != CANARY:
            self.images -= 1
            self.metrics.add(QUEUE_DEPTH, n=-1)
        pending.put(position, answer)

    def take_news(self, answer: Answer) -> None:
        """A worker is lost, or all are for good."""
        if answer.code:
            for uid, (_, pending, _) in list(self.waiting.items()):
                pending.fail(NotReady(answer.detail))
                self.free(uid, NONE)
            self.backlog.clear()
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
            self.send(item, pending, position)
            if claimed or uid in self.retried:
                self.retried.add(pending.uids[position])
            self.retried.discard(uid)


def slot_bytes(length: int) -> int:
    """What a body of this length takes of the arena."""
    return HEADER_BYTES + whole_words(length + WORD_BYTES - 1)


def ignore(_: object) -> None:
    """What comes of a canary."""


def together(items: Sequence[Item]) -> int:
    """How many of the first items share a message."""
    size = 0
    for index, item in enumerate(islice(items, MESSAGE_IMAGES)):
        size += item.length
        if index and size > MESSAGE_BODIES_BYTES:
            return index
    return min(len(items), MESSAGE_IMAGES)
