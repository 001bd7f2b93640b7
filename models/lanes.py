"""Forward passes on a GPU: each on a lane, a stream with buffers of its own, so that copies and passes overlap.

pinned rows, or JPEGs by nvJPEG -> (N, S, S, 3) uint8 on the device -> one CUDA graph a bucket -> pinned probabilities
"""

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from models import nvjpeg

Row = Tensor | memoryview | bytes  # pixels, or a JPEG that `nvjpeg` takes
Preprocess = Callable[[Tensor], Tensor]
LANES = 2  # while one computes, the next one's images cross the bus
WARM_RUNS = 3  # before a capture: TorchScript profiles twice, and cuDNN chooses its kernels


def buckets(max_batch_size: int) -> list[int]:
    """The batch sizes of captured graphs: powers of two up to `max_batch_size`, and that itself."""
    return sorted({bucket(n, max_batch_size) for n in range(1, max_batch_size + 1)})


def bucket(n: int, max_batch_size: int) -> int:
    """The smallest bucket that holds `n` images."""
    return min(1 << (n - 1).bit_length(), max_batch_size)


class Lane:
    """One forward pass at a time."""

    def __init__(
        self, module: Any, preprocess: Preprocess, device: torch.device, max_batch_size: int, size: int, classes: int
    ) -> None:
        """Capture a graph of `module`, uint8 (N, 3, S, S) to float32 (N, K), for each bucket.

        `preprocess` takes a picture uint8 (3, H, W) to (3, S, S).

        Raises:
            RuntimeError: the module cannot be captured.
        """
        self.max_batch_size = max_batch_size
        self.preprocess = preprocess
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pixels = torch.zeros((max_batch_size, size, size, 3), dtype=torch.uint8, device=device)
        self.answers = torch.empty((max_batch_size, classes), pin_memory=True)
        # Who waits sleeps: the cores have pictures to decode.
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()  # one graph at a time runs here: all share the largest one's memory
        self.graphs = {n: self.capture(module, n) for n in reversed(buckets(max_batch_size))}

    def capture(self, module: Any, n: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph for a bucket of `n`, and where it leaves its probabilities."""
        pixels = self.pixels[:n].permute(0, 3, 1, 2)
        self.stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            for _ in range(WARM_RUNS):
                module(pixels)
            self.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                probabilities = module(pixels)
        return graph, probabilities

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Probabilities float32 (N, K) on the CPU for pinned rows uint8 (S, S, 3), and JPEGs."""
        n = len(rows)
        decoded = {number: row for number, row in enumerate(rows) if isinstance(row, Tensor)}
        encoded = {number: row for number, row in enumerate(rows) if not isinstance(row, Tensor)}
        size = bucket(n, self.max_batch_size)
        graph, probabilities = self.graphs[size]
        with torch.cuda.stream(self.stream):
            if decoded:
                # One call for all: each gives Python's lock away, and the threads that decode are slow to give it back.
                places = [self.pixels[number] for number in decoded]
                torch._foreach_copy_(places, list(decoded.values()), non_blocking=True)
            if encoded:
                images = nvjpeg.decode(list(encoded.values()), self.pixels.device)
                for number, image in zip(encoded, images, strict=True):
                    self.pixels[number] = self.preprocess(image).permute(1, 2, 0)
            if n < size:
                self.pixels[n:size] = self.pixels[0]  # no picture that nobody sent
            graph.replay()
            self.answers[:n].copy_(probabilities[:n], non_blocking=True)
            self.done.record(self.stream)
        self.done.synchronize()
        return self.answers[:n].clone()


class Lanes:
    """The lanes of one engine; a pass takes one that is free."""

    def __init__(
        self, module: Any, preprocess: Preprocess, device: torch.device, max_batch_size: int, size: int, classes: int
    ) -> None:
        """Make all lanes; see `Lane`."""
        self.free: SimpleQueue[Lane] = SimpleQueue()
        for _ in range(LANES):
            self.free.put(Lane(module, preprocess, device, max_batch_size, size, classes))

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """Probabilities float32 (N, K) on the CPU for pinned rows uint8 (S, S, 3), and JPEGs. Thread-safe."""
        lane = self.free.get()
        try:
            return lane.predict(rows)
        finally:
            self.free.put(lane)
