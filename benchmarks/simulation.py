"""Nodes that answer in batches, and a discrete-event simulation (simpy) of many: bursts, lost nodes, late starts.

A node is what `service.speed` takes it for: a pass over n images, with their decoding and HTTP on the same cores, takes

    cycle(n) = curve(n) + n * passes * each

and what comes meanwhile is the next pass's batch: at a rate r a batch has n = r cycle(n) / passes images on average.

Where batches pay, they vary (Poisson's law), and a large one takes longer, so that the next is large too; of that chain
the variance is n / (1 - g^2) with g = r cycle'(n) / passes. An image that comes just after a pass began waits for it
and for its own. Where they do not, images queue, and the wait has the tail of M/D/1 in heavy traffic, with
s = cycle(n) / (n passes) for an image and the utilisation rho = r / peak. So, with 2.33 for the normal 99th percentile,

    p99(r) = max(2 cycle(n + 2.33 sqrt(n / (1 - g^2))), cycle(n) + s ln(100 rho) / (2 (1 - rho)))

Held against the simulation by tests/benchmarks/test_simulation.py: from three quarters of it to thrice, where few come.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import simpy

ROUNDS = 200  # of the fixed point n = r * cycle(n)
QUANTILE = 2.33  # of the normal distribution, for 99 %
STEEPEST = 0.999  # growth that is taken for; at 1 a batch would have no end
LOOK_S = 1.0  # between two decisions about how many nodes there should be
Acts = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Node:
    """One machine; times in seconds, `curve` by batch size, `each` what an image costs beside its pass."""

    curve: Mapping[int, float]
    each: float
    passes: int
    most: int  # images in a batch

    def cycle(self, n: float) -> float:
        """A pass over n images: a line between the curve's points, and so many full ones where they are more."""
        if n > self.most:
            return n / self.most * self.cycle(self.most)
        sizes, seconds = zip(*sorted(self.curve.items()), strict=True)
        return float(np.interp(n, sizes, seconds)) + n * self.passes * self.each

    @property
    def peak(self) -> float:
        """Images a second, every pass full."""
        return self.passes * self.most / self.cycle(self.most)

    def batch(self, rate: float) -> float:
        """Images in a batch, on average, at a rate below the peak."""
        n = 1.0
        for _ in range(ROUNDS):
            n = min(float(self.most), max(1.0, rate * self.cycle(n) / self.passes))
        return n

    def p99(self, rate: float) -> float:
        """Seconds, as above; infinite from the peak on."""
        if rate >= self.peak:
            return math.inf
        n = self.batch(rate)
        growth = rate * (self.cycle(n + 0.5) - self.cycle(n - 0.5)) / self.passes
        batches = 2 * self.cycle(n + QUANTILE * math.sqrt(n / (1 - min(growth, STEEPEST) ** 2)))
        used = rate / self.peak
        wait = self.cycle(n) / n / self.passes * math.log(max(1.0, 100 * used)) / (2 * (1 - used))
        return max(batches, self.cycle(n) + wait)

    def rate_within(self, p99: float, utilisation: float) -> float:
        """The highest rate with this p99 (seconds), at most so much of the peak; zero where there is none."""
        low, high = 0.0, utilisation * self.peak
        if self.p99(high) <= p99:
            return high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.p99(middle) <= p99 else (low, middle)
        return low if low > 1e-6 * self.peak else 0.0

    def with_peak(self, peak: float) -> "Node":
        """The same curve, with `each` such that this is its peak, which was measured."""
        each = (self.passes * self.most / peak - self.curve[self.most]) / (self.most * self.passes)
        return replace(self, each=max(0.0, each))


@dataclass(eq=False)
class Replica:
    """A node that works: what waits there, what is in a pass, and who waits for more."""

    queue: deque[float] = field(default_factory=deque)
    under_way: dict[int, list[float]] = field(default_factory=dict)
    idle: deque[simpy.Event] = field(default_factory=deque)
    passes: list[simpy.Process] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Images that are here."""
        return len(self.queue) + sum(map(len, self.under_way.values()))


class Fleet:
    """Nodes behind a balancer that sends each image to the one with the fewest; `latencies` in seconds, as they end."""

    def __init__(self, env: simpy.Environment, node: Node, count: int, capacity: int = 1024) -> None:
        """An image that finds `capacity` waiting at every node is refused."""
        self.env, self.node, self.capacity = env, node, capacity
        self.replicas: list[Replica] = []
        self.latencies: list[float] = []
        self.refused = 0
        self.most = 0  # nodes at once
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """One more node works from now on."""
        replica = Replica()
        replica.passes += [self.env.process(self.work(replica, number)) for number in range(self.node.passes)]
        self.replicas.append(replica)
        self.most = max(self.most, len(self.replicas))

    def send(self, due: float) -> None:
        """An image that was due then."""
        chosen = min(self.replicas, key=lambda replica: replica.load, default=None)
        if chosen is None or chosen.load >= self.capacity:
            self.refused += 1
            return
        chosen.queue.append(due)
        if chosen.idle:
            chosen.idle.popleft().succeed()

    def work(self, replica: Replica, number: int) -> Acts:
        """One of a node's passes, again and again, until the node is lost."""
        with suppress(simpy.Interrupt):
            while True:
                while not replica.queue:
                    replica.idle.append(self.env.event())
                    yield replica.idle[-1]
                batch = [replica.queue.popleft() for _ in range(min(len(replica.queue), self.node.most))]
                replica.under_way[number] = batch
                yield self.env.timeout(self.node.cycle(len(batch)))
                self.latencies += [self.env.now - due for due in replica.under_way.pop(number)]

    def lose(self) -> None:
        """A node is lost with its work, which the balancer sends to others."""
        lost = self.replicas.pop()
        for one in lost.passes:
            one.interrupt()
        for due in (*(due for batch in lost.under_way.values() for due in batch), *lost.queue):
            self.send(due)

    def autoscale(self, target: float, lag: float, most: int) -> Acts:
        """Each second: as many nodes as have `target` images each, up to `most`; each works after `lag` s."""
        starting = 0

        def start() -> Acts:
            nonlocal starting
            yield self.env.timeout(lag)
            starting -= 1
            self.add()

        while True:
            yield self.env.timeout(LOOK_S)
            here = sum(replica.load for replica in self.replicas)
            wanted = min(most, math.ceil(here / target))
            while len(self.replicas) + starting < wanted:
                starting += 1
                self.env.process(start())


def simulate(node: Node, arrivals: Sequence[float], count: int, *acts: Callable[[Fleet], Acts]) -> Fleet:
    """So many nodes while images arrive at these times (seconds), until all are answered; `acts` happen meanwhile."""
    env = simpy.Environment()
    fleet = Fleet(env, node, count)

    def arrive() -> Acts:
        for due in arrivals:
            yield env.timeout(due - env.now)
            fleet.send(due)

    env.process(arrive())
    for act in acts:
        env.process(act(fleet))
    while len(fleet.latencies) + fleet.refused < len(arrivals):
        env.run(until=env.now + LOOK_S)
    return fleet


def poisson(seed: int, *parts: tuple[float, float]) -> list[float]:
    """Arrivals at rates for so many seconds each, one part after the other."""
    chance, found, start = random.Random(seed), list[float](), 0.0
    for rate, seconds in parts:
        now = start
        while (now := now + chance.expovariate(rate)) < start + seconds:
            found.append(now)
        start += seconds
    return found
