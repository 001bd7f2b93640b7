"""An HTTP process's end of the transport: admission, slots, deadlines, and who waits for which answer."""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, islice
from math import inf
from time import monotonic

from service.errors import AtCapacity, DeadlineExceeded, NotReady, ServiceError, TooLarge, TooManyImages
from service.metrics import QUEUE_DEPTH, Metrics
from service.transport import (
    LOST_UID,
    MESSAGE_BODIES_BYTES,
    MESSAGE_BYTES,
    MESSAGE_IMAGES,
    REQUEST,
    Answer,
    Item,
    Transport,
)

NONE = Answer(LOST_UID, [])


class Slots:
    """First-fit allocation of byte ranges [start, end); few are held at once, so a list is enough."""

    def __init__(self, start: int, end: int) -> None:
        """All of [start, end) is free."""
        self.free: list[tuple[int, int]] = [(start, end)]

    def take(self, length: int) -> int | None:
        """The offset of a new slot, or None where no gap is long enough."""
        for index, (start, end) in enumerate(self.free):
            if end - start >= length:
                if end - start == length:
                    del self.free[index]
                else:
                    self.free[index] = (start + length, end)
                return start
        return None

    def give(self, offset: int, length: int) -> None:
        """Free a slot and join it with free neighbours."""
        end = offset + length
        index = bisect_left(self.free, (end,))
        if index < len(self.free) and self.free[index][0] == end:
            end = self.free.pop(index)[1]
        if index and self.free[index - 1][1] == offset:
            self.free[index - 1] = (self.free[index - 1][0], end)
        else:
            self.free.insert(index, (offset, end))


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


class Channel:
    """Sends images to the workers and brings their answers to whoever waits for them.

    A slot is freed by the worker's answer alone, also when nobody waits for it any more: until then it may be read.
    """

    def __init__(self, transport: Transport, process: int, capacity: int, metrics: Metrics) -> None:
        """Of the service's `capacity` (images) this process has its equal share, at least one."""
        self.transport = transport
        self.metrics = metrics
        self.process = process
        self.capacity = max(1, capacity // transport.processes)
        start = transport.slots_start + process * transport.share
        self.slots = Slots(start, start + transport.share)
        self.waiting: dict[int, tuple[Item, Pending, int]] = {}
        self.backlog: deque[Item] = deque()
        self.flushing = False  # soon, or when the socket can take more
        self.uids = count(LOST_UID + 1)
        self.loop = asyncio.get_running_loop()
        self.alarm = self.loop.call_soon(self.expire)  # rings at `earliest`, or before
        self.earliest = inf
        self.arena = transport.arena
        self.sender = transport.requests[0]
        self.receiver = transport.answers[process][1]
        self.sender.setblocking(False)
        self.receiver.setblocking(False)
        self.loop.add_reader(self.receiver, self.take_answers)

    def close(self) -> None:
        """Stop listening; let the workers see that this process sends no more."""
        self.alarm.cancel()
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
    ) -> Pending:
        """Accept all `bodies` of a request or none; see `Pending` for what follows.

        Raises:
            AtCapacity: too many images or bytes wait already.
            TooManyImages, TooLarge: they would not fit if nothing else waited.
        """
        if len(bodies) > self.capacity:
            raise TooManyImages(f"The request has {len(bodies)} images; the capacity is {self.capacity}.")
        if sum(map(len, bodies)) > self.transport.share:
            raise TooLarge(f"The request's images are larger than the capacity of {self.transport.share} bytes.")
        if len(self.waiting) + len(bodies) > self.capacity:
            raise AtCapacity(
                f"{len(self.waiting)} images are waiting; the capacity is {self.capacity}. Try again soon."
            )
        offsets: list[int] = []
        for body in bodies:
            offset = self.slots.take(len(body))
            if offset is None:
                for taken, given_back in zip(offsets, bodies, strict=False):
                    self.slots.give(taken, len(given_back))
                raise AtCapacity("The room for waiting bodies is full. Try again soon.")
            offsets.append(offset)
        pending = Pending(len(bodies), deadline, done, failed)
        accepted = monotonic()
        for position, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
            self.arena[offset : offset + len(body)] = body
            item = Item(self.process, next(self.uids), offset, len(body), top_k, accepted, deadline)
            self.waiting[item.uid] = item, pending, position
            self.backlog.append(item)
        self.metrics.add(QUEUE_DEPTH, n=len(bodies))
        if not self.flushing:
            # At the end of this turn of the event loop, together with what its other requests bring.
            self.loop.call_soon(self.flush)
            self.flushing = True
        if deadline < self.earliest:
            self.wake(deadline)
        return pending

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
            pending.fail(DeadlineExceeded("The request's deadline passed before it was answered."))
        left = [pending.deadline for _, pending, _ in self.waiting.values() if pending.deadline > now]
        if left:
            self.wake(min(left))

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
            for answer in Answer.unpack_all(message):
                if answer.uid == LOST_UID:
                    self.fail_all(answer)
                elif answer.uid in self.waiting:
                    item, pending, position = self.waiting.pop(answer.uid)
                    self.slots.give(item.offset, item.length)
                    pending.put(position, answer)

    def fail_all(self, answer: Answer) -> None:
        """The service is about to end and none of these will be answered."""
        waiting = list(self.waiting.values())
        self.waiting.clear()
        self.backlog.clear()
        for item, pending, _ in waiting:
            self.slots.give(item.offset, item.length)
            pending.fail(NotReady(answer.detail))


def together(items: Sequence[Item]) -> int:
    """How many of the first items share a message."""
    size = 0
    for index, item in enumerate(islice(items, MESSAGE_IMAGES)):
        size += item.length
        if index and size > MESSAGE_BODIES_BYTES:
            return index
    return min(len(items), MESSAGE_IMAGES)
