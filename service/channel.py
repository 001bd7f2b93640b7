"""An HTTP process's end of the transport: admission, slots, and futures that the answers complete."""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import count
from time import monotonic

from service import metrics
from service.errors import AtCapacity, TooLarge, TooManyImages
from service.transport import LOST_UID, MESSAGE_BYTES, REQUEST, Answer, Item, Transport


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
        index = next((i for i, gap in enumerate(self.free) if gap[0] >= end), len(self.free))
        if index < len(self.free) and self.free[index][0] == end:
            end = self.free.pop(index)[1]
        if index and self.free[index - 1][1] == offset:
            self.free[index - 1] = (self.free[index - 1][0], end)
        else:
            self.free.insert(index, (offset, end))


class Channel:
    """Sends images to the workers and completes a future for each.

    A slot is freed by the worker's answer alone, also when nobody waits for it any more: until then it may be read.
    """

    def __init__(self, transport: Transport, process: int, capacity: int) -> None:
        """Of the service's `capacity` (images) this process has its equal share, at least one."""
        self.transport = transport
        self.process = process
        self.capacity = max(1, capacity // transport.processes)
        start = transport.board_bytes + process * transport.share
        self.slots = Slots(start, start + transport.share)
        self.waiting: dict[int, tuple[Item, asyncio.Future[Answer]]] = {}
        self.backlog: deque[bytes] = deque()
        self.blocked = False
        self.uids = count(LOST_UID + 1)
        self.loop = asyncio.get_running_loop()
        self.sender = transport.requests[0]
        self.receiver = transport.answers[process][1]
        self.sender.setblocking(False)
        self.receiver.setblocking(False)
        self.loop.add_reader(self.receiver, self.take_answers)

    def close(self) -> None:
        """Stop listening; let the workers see that this process sends no more."""
        self.loop.remove_reader(self.receiver)
        self.loop.remove_writer(self.sender)
        self.sender.close()

    def submit(self, bodies: Sequence[bytes], top_k: int, deadline: float) -> list[asyncio.Future[Answer]]:
        """Accept all `bodies` of a request or none.

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
        taken: list[tuple[int, int]] = []
        for body in bodies:
            offset = self.slots.take(len(body))
            if offset is None:
                for slot in taken:
                    self.slots.give(*slot)
                raise AtCapacity("The room for waiting bodies is full. Try again soon.")
            taken.append((offset, len(body)))
        return [
            self.send(body, Item(self.process, next(self.uids), offset, length, top_k, monotonic(), deadline))
            for body, (offset, length) in zip(bodies, taken, strict=True)
        ]

    def send(self, body: bytes, item: Item) -> asyncio.Future[Answer]:
        """Put the body into its slot and its descriptor on the way."""
        self.transport.arena[item.offset : item.offset + item.length] = body
        future: asyncio.Future[Answer] = self.loop.create_future()
        self.waiting[item.uid] = (item, future)
        metrics.QUEUE_DEPTH.inc()
        self.backlog.append(REQUEST.pack(*item))
        self.flush()
        return future

    def flush(self) -> None:
        """Send what the socket takes; the rest follows when it can take more."""
        try:
            while self.backlog:
                self.sender.send(self.backlog[0])
                self.backlog.popleft()
        except BlockingIOError:
            self.loop.add_writer(self.sender, self.flush)
            self.blocked = True
        else:
            if self.blocked:
                self.loop.remove_writer(self.sender)
                self.blocked = False

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
                    item, future = self.waiting.pop(answer.uid)
                    self.slots.give(item.offset, item.length)
                    complete(future, answer)

    def fail_all(self, answer: Answer) -> None:
        """The service is about to end and none of these will be answered."""
        for item, future in self.waiting.values():
            self.slots.give(item.offset, item.length)
            complete(future, answer)
        self.waiting.clear()
        self.backlog.clear()


def complete(future: asyncio.Future[Answer], answer: Answer) -> None:
    """Set the answer unless the request stopped waiting."""
    if not future.done():
        future.set_result(answer)
