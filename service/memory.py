"""A few numbers by key, of which each HTTP process remembers its latest, and all read all: tables in shared memory.

    table of a process:  keys (uint64) | values (uint64)     a value: milliseconds of CLOCK_MONOTONIC | number < 2^16

A key has a row, in which the latest keys of that row stand, so that one is found at once. Whoever has a table writes it
alone, so there is no lock. Keys are Python's hashes, the same in forked processes; two of the 2^64 keys that are
remembered at once are hardly ever the same.
"""

import mmap
from time import monotonic

WORD_BYTES = 8
NUMBER_BITS = 16
ROW = 64  # numbers; with fewer, rows would fill less evenly, and some be forgotten much earlier than others


class Memory:
    """Made in the main process, before HTTP processes are forked."""

    def __init__(self, processes: int, rows: int) -> None:
        """Every process remembers so many `rows` of numbers; memory is taken as they are used."""
        entries = rows * ROW
        words = memoryview(mmap.mmap(-1, processes * 2 * entries * WORD_BYTES)).cast("Q")
        halves = [words[start : start + entries] for start in range(0, len(words), entries)]
        self.tables = list(zip(halves[::2], halves[1::2], strict=True))
        self.rows = rows
        self.begin(0)

    def begin(self, process: int) -> None:
        """From now on this is that HTTP process."""
        self.keys, self.values = self.tables[process]
        self.next = bytearray(self.rows)  # where each row goes on

    def put(self, key: int, number: int) -> None:
        """Remember a number, and forget the oldest of its row."""
        row = key % self.rows
        at = row * ROW + self.next[row]
        self.next[row] = (self.next[row] + 1) % ROW
        self.keys[at] = 0  # so that nobody takes the new value for the old key's
        self.values[at] = int(monotonic() * 1000) << NUMBER_BITS | number
        self.keys[at] = key

    def find(self, key: int) -> tuple[int, int] | None:
        """When the key's latest number was put, in milliseconds of CLOCK_MONOTONIC, and the number."""
        start = key % self.rows * ROW
        found = [
            values[start + place]
            for keys, values in self.tables
            for place, other in enumerate(keys[start : start + ROW])
            if other == key
        ]
        return divmod(max(found), 1 << NUMBER_BITS) if found else None


def key_of(*parts: object) -> int:
    """A key that is not zero."""
    return hash(parts) & (1 << 64) - 1 or 1
