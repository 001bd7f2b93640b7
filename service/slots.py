"""Slots: places for bodies, one after another in an HTTP process's part of the arena."""

from bisect import bisect_left


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
