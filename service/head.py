"""A head that a client sends with image after image: what was parsed of it once holds again.

On a connection that is kept, requests mostly differ in their bodies alone. Bytes that are those of a head which the
parser took, but for the digits of Content-Length, are a head that it would take again, with everything it says.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=[ \t]*\r\n)", re.IGNORECASE)
LONGEST = 12  # digits and the byte after them, of what comes in one piece


class Head(NamedTuple):
    """Its bytes before and after the digits, and which of its headers they are the value of."""

    before: bytes
    after: bytes
    header: int

    def body(self, data: bytes) -> bytes | None:
        """The body, where `data` is one whole request with this head."""
        start = len(self.before)
        if not data.startswith(self.before):
            return None
        end = data.find(self.after[:1], start, start + LONGEST)
        first = end + len(self.after)
        if end < 0 or data[start:end] != b"%d" % (len(data) - first) or not data.startswith(self.after, end):
            return None
        return data[first:]


def head_of(data: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Head | None:
    """The head of `data`, one whole request that was parsed to these headers; None where its body has no length."""
    end = data.find(END) + len(END)
    lengths = [at for at, (name, _) in enumerate(headers) if name == b"content-length"]
    found = LENGTH.search(data, 0, end)
    if len(lengths) != 1 or found is None or found[1] != b"%d" % (len(data) - end):
        return None
    return Head(data[: found.start(1)], data[found.end(1) : end], lengths[0])
