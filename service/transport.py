"""Bodies from the HTTP processes to the workers and answers back: no pickling, no lock, no polling.

    HTTP process                                      worker
    ------------                                      ------
    body -> slot in the arena (memfd, mapped by all)
    descriptors -> SEQPACKET "requests" of a side --> receive() -> body(), a view of the slot
    futures <- SEQPACKET "answers", one a process <-- answer(), of a batch for each process, in as few messages

A SEQPACKET message is atomic in the kernel: many may send and receive on one socket, and a killed process can hold
nothing that the others need. Descriptors of small bodies that come together travel together.

    slot:  uid | claimed uid | claimer | trace | body

The arena is `service.board`'s. A worker that takes an item writes the item's uid and its own process id over the body.
So it is known what a lost worker had, and an item whose uid no longer stands in its slot was given up by the HTTP
process, or sent again under another uid.
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

from service.board import SIDES, WORD_BYTES, Board
from service.inlet import Inlet

UID, CLAIMED, CLAIMER, TRACE = range(4)  # words (uint64) before a body; the last with those after it
HEADER_BYTES = 6 * WORD_BYTES
REQUEST = struct.Struct("<HQQIIdd??")
ANSWER = struct.Struct("<QHIfff")
PREDICTION = struct.Struct("<If")
# One message holds the descriptors of as many images, or of bodies that are as large together, and no worker gets
# much more of what waits than the others.
MESSAGE_IMAGES = 8
MESSAGE_BODIES_BYTES = 32 * 1024
# Below Linux's default net.core.wmem_max (212,992), which bounds a message.
MESSAGE_BYTES = 128 * 1024
# So many answers a message: an HTTP process looks for new requests before it takes the next (decision 27).
MESSAGE_ANSWERS = 16
MAX_CLASSES = 16_000  # so that one image's answer for every class fits a message
NO_UID = 0  # of an empty slot; an answer with it tells what befell a worker
Trace = tuple[int, int, int]  # a request's span: the halves of its trace id, its span id
NO_TRACE: Trace = (0, 0, 0)
ABANDONED = "abandoned"  # the code of an answer that tells so of a side
CANARY = 0  # the `top_k` of an item that only asks whether it is answered; counted nowhere


class Item(NamedTuple):
    """One image on its way to a worker: whose it is, where its slot lies, how many predictions by when.

    `accepted` and `deadline` are seconds of CLOCK_MONOTONIC, which Linux shares between processes. Its body is encoded
    or, with `pixels`, uint8 (3, S, S). Nobody waits for a `shadow`, but it is compared; it is counted nowhere.
    """

    process: int
    uid: int
    offset: int
    length: int
    top_k: int
    accepted: float
    deadline: float
    pixels: bool = False
    shadow: bool = False

    @property
    def counted(self) -> bool:
        """Whether metrics count it."""
        return self.top_k != CANARY and not self.shadow


class Answer(NamedTuple):
    """What became of one image: `predictions` [(class index, probability)] highest first, or an error's `code`."""

    uid: int
    predictions: Sequence[tuple[int, float]]
    code: str = ""
    detail: str = ""
    queue: float = 0.0
    decode: float = 0.0
    inference: float = 0.0

    def pack(self) -> bytes:
        """Header, then the error as text, or the predictions as (uint32, float32) pairs."""
        if self.code:
            payload = f"{self.code}\0{self.detail}".encode()
        else:
            payload = pairs(len(self.predictions)).pack(*chain.from_iterable(self.predictions))
        return ANSWER.pack(self.uid, len(self.code), len(payload), *self[4:]) + payload

    @classmethod
    def unpack_all(cls, message: bytes) -> Iterable["Answer"]:
        """The answers of one message."""
        at = 0
        while at < len(message):
            uid, error, length, *times = ANSWER.unpack_from(message, at)
            payload = message[at + ANSWER.size : at + ANSWER.size + length]
            at += ANSWER.size + length
            if error:
                code, _, detail = payload.decode().partition("\0")
                yield cls(uid, [], code, detail, *times)
            else:
                yield cls(uid, list(PREDICTION.iter_unpack(payload)), "", "", *times)


@cache
def pairs(count: int) -> struct.Struct:
    """So many predictions behind each other."""
    return struct.Struct("<" + "If" * count)


class Transport(Board):
    """The arena and the sockets; made in the main process, inherited by forks, sent to workers."""

    side = 0  # whose images a worker receives; told to each before it is started

    def connect(self) -> None:
        """Make the sockets; processes forked before this hold no end of them, so that an end can be seen to close."""
        self.requests = [pair() for _ in range(SIDES)]
        # A worker's; here where both ends are in one process.
        self.inlet, self.view = Inlet(self.requests[self.side][1]), memoryview(self.arena).toreadonly()
        self.orders = pair()  # from HTTP processes to the main process
        for end in self.orders:
            end.setblocking(False)
        self.answers = [pair() for _ in range(self.processes)]
        self.news: list[deque[bytes]] = [deque() for _ in range(self.processes)]  # not delivered yet

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker needs: the arena, the receiving end of requests, the sending ends of answers."""
        receiver = self.requests[self.side][1]
        senders = [sender for sender, _ in self.answers]
        mapped = ("arena", "words", "requests", "inlet", "view", "orders", "answers", "news")
        plain = {name: value for name, value in vars(self).items() if name not in mapped}
        return plain | {"fd": DupFd(self.fd), "ends": (receiver, senders)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the arena again in the worker."""
        receiver, senders = state.pop("ends")
        vars(self).update(state)
        self.fd = state["fd"].detach()
        self.map()
        self.view = memoryview(self.arena).toreadonly()
        self.inlet = Inlet(receiver)
        self.answers = [(sender, None) for sender in senders]  # type: ignore[misc]

    # The worker's side

    def receive(self) -> list[Item]:
        """Wait for the next images, a few at most, and claim them; none when no HTTP process is left to send any."""
        return self.claimed(self.inlet.receive)

    def take(self) -> list[Item]:
        """Claim the next images if some have come; none otherwise."""
        return self.claimed(self.inlet.take)

    def claimed(self, next_message: Callable[[int], bytes]) -> list[Item]:
        """The images of the next message of which not all have been given up."""
        while message := next_message(MESSAGE_IMAGES * REQUEST.size):
            if items := [item for fields in REQUEST.iter_unpack(message) if self.claim(item := Item._make(fields))]:
                return items
        return []

    def claim(self, item: Item) -> bool:
        """Take an item as this worker's, unless it has been given up; then its slot is given back."""
        if self.wanted(item):
            at = item.offset // WORD_BYTES
            self.words[at + CLAIMER] = os.getpid()
            self.words[at + CLAIMED] = item.uid
            return True
        self.answer(item.process, [Answer(item.uid, [], "client_disconnect")])
        return False

    def wanted(self, item: Item) -> bool:
        """Whether somebody still waits for the item's answer."""
        return self.words[item.offset // WORD_BYTES + UID] == item.uid

    def body(self, item: Item) -> memoryview:
        """The item's body where it lies; valid until it is answered."""
        start = item.offset + HEADER_BYTES
        return self.view[start : start + item.length]

    def trace(self, item: Item) -> Trace:
        """The span of the item's request; until it is answered."""
        at = item.offset // WORD_BYTES + TRACE
        return self.words[at], self.words[at + 1], self.words[at + 2]

    def answer(self, process: int, answers: Iterable[Answer]) -> None:
        """Send answers to one HTTP process, in as few messages as their number and size allow."""
        sender = self.answers[process][0]
        message, count = b"", 0
        for packed in map(Answer.pack, answers):
            if count == MESSAGE_ANSWERS or (count and len(message) + len(packed) > MESSAGE_BYTES):
                sender.send(message)
                message, count = b"", 0
            message += packed
            count += 1
        if count:
            sender.send(message)

    # The main process's side

    def lost(self, pid: int) -> None:
        """Tell the HTTP processes that a worker is no more."""
        self.tell_all(Answer(NO_UID, [(pid, 0.0)]))

    def give_up(self, detail: str) -> None:
        """Tell the HTTP processes that what they wait for will not be answered, and why."""
        self.tell_all(Answer(NO_UID, [], "not_ready", detail))

    def tell_all(self, answer: Answer) -> None:
        """Send the same to every HTTP process, as soon as it listens."""
        for news in self.news:
            news.append(answer.pack())
        self.deliver()

    def deliver(self) -> None:
        """Send the news that HTTP processes could not take yet; one that does not listen keeps no other waiting."""
        for news, (sender, _) in zip(self.news, self.answers, strict=True):
            with suppress(BlockingIOError):
                while news:
                    with suppress(ConnectionError):  # who is no more needs none
                        sender.send(news[0], socket.MSG_DONTWAIT)
                    news.popleft()

    def close_requests(self) -> None:
        """Give up the main process's sending ends, so that workers end when the HTTP processes have."""
        for sender, _ in self.requests:
            sender.close()

    def abandon(self, side: int) -> None:
        """Tell the HTTP processes that nobody works on the version that a side has."""
        self.tell_all(Answer(NO_UID, [], ABANDONED, f"{side} {self.written(side)}"))


def pair() -> tuple[socket.socket, socket.socket]:
    """A sending and a receiving end."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)  # as much as the kernel allows
    return sender, receiver
