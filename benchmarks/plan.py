"""What a suite is asked to do, and how its rounds are bounded in time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # one raw measurement: what was measured, under which conditions, and what was found


@dataclass(frozen=True)
class Plan:
    """A suite's options. `models` is where model files are made, `data` where real pictures lie."""

    models: Path
    seconds: float = 1
    rounds: int = 1
    minutes: float = 12
    workloads: Sequence[str] = ()
    quick: bool = False
    peers: bool = False
    dtype: str = "fp32"
    device: str = "cpu"
    flags: Sequence[str] = ()
    arrivals: str = "even"
    data: Path | None = None
    only: Sequence[str] = ()
    started: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        """Tell of progress."""
        print(line, flush=True)

    def numbers(self, share: float = 1.0) -> Iterator[int]:
        """Number the rounds; there is always one, and no other begins that would pass this share of `minutes`."""
        longest = 0.0
        for number in range(self.rounds):
            begun = time.monotonic()
            if number and begun + longest > self.started + 60 * self.minutes * share:
                self.say(f"stopped after {number} of {self.rounds} rounds, for they have {self.minutes:g} minutes")
                return
            yield number
            longest = max(longest, time.monotonic() - begun)
