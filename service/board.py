"""The arena: memory that all processes of the service share; on the board in it they tell each other how they are.

    arena:  board | cells of metrics, a part for each process | slots, a part for each HTTP process | documents

Whoever has a part writes it alone, so there is no lock.
"""

import ctypes
import json
import mmap
import os
import struct
from time import monotonic
from typing import Any

# There are two sides, so that the workers of another version of the model can stand beside those that answer.
SIDES = 2
# Of the board: an entry for what holds for all, then one a worker: last beat, last answer, length of facts, facts.
ENTRY_BYTES = 2048
PHASE_AT, SERVING_AT, SHADOWS_AT, OPEN_AT, SHARE_AT, DOCUMENTS_AT, WAITING_AT = 0, 1, 2, 4, 8, 16, 1024
TIME, SHARE, LENGTH = struct.Struct("d"), struct.Struct("d"), struct.Struct("I")  # native, so written in one piece
BEAT_AT, ANSWER_AT, LENGTH_AT, FACTS_AT = 0, TIME.size, 2 * TIME.size, 2 * TIME.size + LENGTH.size
FACTS_BYTES = ENTRY_BYTES - FACTS_AT
REFUSAL, LONGEST_REASON = "refusal", 300  # characters, of up to six bytes each in JSON
WORD_BYTES = 8
DOUBLE_BYTES = ctypes.sizeof(ctypes.c_double)
LOADING, READY, DRAINING, FAILED = range(4)
# Which version each side has, as its manifest, and what is told of all; memory that nobody has written to costs none.
DOCUMENTS, DOCUMENT_BYTES = SIDES + 1, 8 << 20
STATE = SIDES  # the number of the last
LONGEST_DOCUMENT = DOCUMENT_BYTES - LENGTH.size


class Board:
    """The arena, made in the main process and inherited by forks."""

    def __init__(self, processes: int, places: int, capacity_bytes: int, cells: int = 0) -> None:
        """Room for `capacity_bytes` of bodies, shared equally by the HTTP `processes`, and `places` for workers a side.

        Every HTTP process, every worker and then the main process gets so many `cells` (float64).
        """
        self.processes, self.places, self.workers, self.counted = processes, places, SIDES * places, cells
        self.board_bytes = (1 + self.workers) * ENTRY_BYTES
        self.slots_start = self.board_bytes + (processes + self.workers + 1) * cells * DOUBLE_BYTES
        self.room = whole_words(capacity_bytes // processes)
        self.documents_start = self.slots_start + self.room * processes
        self.fd = os.memfd_create("darkroom-arena", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.documents_start + 2 * DOCUMENTS * DOCUMENT_BYTES)
        self.map()
        self.arena[OPEN_AT] = True

    def map(self) -> None:
        """See the arena as bytes and as words."""
        self.arena = mmap.mmap(self.fd, 0)
        self.words = memoryview(self.arena).cast("Q")

    def cells(self, index: int) -> ctypes.Array[ctypes.c_double]:
        """One process's cells: HTTP processes come first, then workers, then the main process."""
        start = self.board_bytes + index * self.counted * DOUBLE_BYTES
        return (ctypes.c_double * self.counted).from_buffer(self.arena, start)

    def all_cells(self) -> list[ctypes.Array[ctypes.c_double]]:
        """The cells of every process."""
        return [self.cells(index) for index in range(self.processes + self.workers + 1)]

    def serving_cells(self) -> list[ctypes.Array[ctypes.c_double]]:
        """The cells of the workers of the side that answers."""
        return [self.cells(self.processes + worker) for worker in self.workers_on(self.serving)]

    @property
    def phase(self) -> int:
        """LOADING, READY, DRAINING or FAILED, as the main process sees the service."""
        return self.arena[PHASE_AT]

    @phase.setter
    def phase(self, phase: int) -> None:
        self.arena[PHASE_AT] = phase

    def tell(self, worker: int, facts: dict[str, Any]) -> None:
        """A worker is ready, and these are the facts about it; length last, so that no half text is read."""
        text, at = json.dumps(facts).encode(), entry(worker)
        assert len(text) <= FACTS_BYTES, "facts are a few short words"
        self.arena[at + FACTS_AT : at + FACTS_AT + len(text)] = text
        LENGTH.pack_into(self.arena, at + LENGTH_AT, len(text))

    def facts(self, worker: int) -> dict[str, Any]:
        """What a worker has told."""
        at = entry(worker)
        (length,) = LENGTH.unpack_from(self.arena, at + LENGTH_AT)
        facts: dict[str, Any] = json.loads(self.arena[at + FACTS_AT : at + FACTS_AT + length]) if length else {}
        return facts

    def told(self, worker: int) -> dict[str, Any] | None:
        """The facts of a ready worker, else None."""
        facts = self.facts(worker)
        return facts if facts and REFUSAL not in facts else None

    def refuse(self, worker: int, reason: str) -> None:
        """A worker cannot become ready."""
        self.tell(worker, {REFUSAL: reason[:LONGEST_REASON]})

    def refusal(self, worker: int) -> str:
        """Why a worker could not become ready."""
        return str(self.facts(worker).get(REFUSAL, ""))

    def all_told(self) -> list[dict[str, Any]]:
        """The facts of all ready workers."""
        return [facts for worker in range(self.workers) if (facts := self.told(worker))]

    def told_on(self, side: int) -> list[dict[str, Any]]:
        """The facts of a side's ready workers."""
        return [facts for worker in self.workers_on(side) if (facts := self.told(worker))]

    def workers_on(self, side: int) -> range:
        """The parts of a side's workers."""
        return range(side * self.places, (side + 1) * self.places)

    def beat(self, worker: int) -> None:
        """A worker lives."""
        TIME.pack_into(self.arena, entry(worker) + BEAT_AT, monotonic())

    def last_beat(self, worker: int) -> float:
        """When a worker last lived, in seconds of CLOCK_MONOTONIC; zero if it never has."""
        (beat,) = TIME.unpack_from(self.arena, entry(worker) + BEAT_AT)
        return float(beat)

    def answered(self, worker: int) -> None:
        """A worker's model works: it has just answered somebody."""
        TIME.pack_into(self.arena, entry(worker) + ANSWER_AT, monotonic())

    def last_answered(self) -> float:
        """When a worker that serves last answered, in seconds of CLOCK_MONOTONIC; zero if none has."""
        serving = self.workers_on(self.serving)
        return max(float(TIME.unpack_from(self.arena, entry(worker) + ANSWER_AT)[0]) for worker in serving)

    # Which side gets what

    @property
    def serving(self) -> int:
        """The side that answers."""
        return self.arena[SERVING_AT]

    @property
    def shadows(self) -> bool:
        """Whether the other side is sent copies, to compare."""
        return bool(self.arena[SHADOWS_AT])

    @property
    def share(self) -> float:
        """The share of requests that the other side answers."""
        return float(SHARE.unpack_from(self.arena, SHARE_AT)[0])

    def divide(self, serving: int, share: float = 0.0, *, shadows: bool = False) -> None:
        """Let the side `serving` answer, but for a `share` of the requests."""
        self.arena[SHADOWS_AT] = 0
        SHARE.pack_into(self.arena, SHARE_AT, 0.0)
        self.arena[SERVING_AT] = serving
        SHARE.pack_into(self.arena, SHARE_AT, share)
        self.arena[SHADOWS_AT] = shadows

    def opened(self, side: int) -> bool:
        """Whether a side's workers may be sent anything."""
        return bool(self.arena[OPEN_AT + side])

    def open(self, side: int, *, to: bool) -> None:
        """Let a side be sent images from now on, or no more."""
        self.arena[OPEN_AT + side] = to

    def waits(self, process: int, side: int, images: int) -> None:
        """So many images of an HTTP process's are on a side, or about to be."""
        self.words[(WAITING_AT + (process * SIDES + side) * WORD_BYTES) // WORD_BYTES] = images

    def waiting(self, side: int) -> int:
        """How many images are on a side."""
        first = WAITING_AT // WORD_BYTES + side
        return sum(self.words[first : first + SIDES * self.processes : SIDES])

    def publish(self, number: int, text: bytes) -> None:
        """Write a document, by the main process alone: beside what is there, so that no half text is read."""
        assert len(text) <= LONGEST_DOCUMENT, "checked when the artifact was read"
        count = self.written(number) + 1
        at = self.document_at(number, count)
        self.arena[at + LENGTH.size : at + LENGTH.size + len(text)] = text
        LENGTH.pack_into(self.arena, at, len(text))
        LENGTH.pack_into(self.arena, DOCUMENTS_AT + number * LENGTH.size, count)

    def written(self, number: int) -> int:
        """How often a document has been written."""
        return int(LENGTH.unpack_from(self.arena, DOCUMENTS_AT + number * LENGTH.size)[0])

    def document(self, number: int) -> bytes:
        """A document as it was last written."""
        at = self.document_at(number, self.written(number))
        (length,) = LENGTH.unpack_from(self.arena, at)
        return self.arena[at + LENGTH.size : at + LENGTH.size + length]

    def document_at(self, number: int, count: int) -> int:
        """Where a document begins that is written for the `count`th time."""
        return self.documents_start + (2 * number + count % 2) * DOCUMENT_BYTES

    def clear(self, worker: int) -> None:
        """A worker is no more."""
        self.arena[entry(worker) : entry(worker) + FACTS_AT] = bytes(FACTS_AT)


def entry(worker: int) -> int:
    """Where a worker's part of the board starts."""
    return (1 + worker) * ENTRY_BYTES


def whole_words(length: int) -> int:
    """The most bytes up to `length` that are whole words."""
    return length // WORD_BYTES * WORD_BYTES
