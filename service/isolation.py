"""What the model makes of a batch: for each image a ranking, or why it has none.

An image that the model fails on does not touch its neighbours: a batch that fails is predicted again in halves.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from models.engine import Engine, sample
from models.errors import ImageError
from service.errors import Internal, NonFinite, NotReady
from service.logs import logger
from service.metrics import BATCH_SPLITS, Metrics
from service.transport import Item

Ranking = list[tuple[int, float]]  # (class index, probability), highest first


class Decoded(NamedTuple):
    """An item whose pixels lie in `row`, uint8 (S, S, 3), or will, where the engine decodes `encoded` itself.

    Times in seconds of CLOCK_MONOTONIC.
    """

    item: Item
    row: Tensor
    encoded: memoryview | None
    started: float
    finished: float
    pixels: int = 0  # that it had before; zero where it came without a file


class Failure(NamedTuple):
    """Why an image has no predictions."""

    code: str
    detail: str


FAILED = Failure(Internal.code, "The model failed on this image.")
NO_MEMORY = Failure(NotReady.code, "The model ran out of memory on this image; try again.")
NOT_FINITE = Failure(NonFinite.code, "The model gave no finite probabilities for this image.")
OF_THE_MODEL = (FAILED, NO_MEMORY, NOT_FINITE)


class Isolation:
    """The engine, by which a batch comes through whatever the model does."""

    def __init__(
        self, engine: Engine, metrics: Metrics, batch_size: int, decode: Callable[[Item, memoryview, Tensor], int]
    ) -> None:
        """`batch_size` is what pays, and shrinks to what the model bears; `decode` is for what the engine could not."""
        self.engine, self.metrics, self.batch_size, self.decode = engine, metrics, batch_size, decode

    def results(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """For each image its `top_k` predictions, highest first, or why there are none."""
        try:
            probabilities = self.engine.predict([image.encoded or image.row for image in images])
        except Exception as error:  # whatever it is, it must not keep the neighbours' answers back
            if any(image.encoded for image in images):
                return self.results_by_cpu(images, top_k)
            if len(images) == 1:
                logger.exception("the model failed on an image")
                return [NO_MEMORY if isinstance(error, MemoryError) else FAILED]
            return self.halves(images, top_k)
        highest = probabilities.topk(min(top_k, probabilities.size(1)))
        finite = probabilities.isfinite().all(1).tolist()
        rankings = zip(highest.indices.tolist(), highest.values.tolist(), finite, strict=True)
        return [list(zip(indices, values, strict=True)) if ok else NOT_FINITE for indices, values, ok in rankings]

    def works(self) -> bool:
        """Whether the model predicts an image of our own."""
        try:
            return bool(self.engine.predict(sample(self.engine, 1)).isfinite().all())
        except Exception:
            logger.exception("the model failed on an image of our own")
            return False

    def results_by_cpu(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """The same, where the engine could not decode one of them: the CPU decides which, and whether it is damaged."""
        results: list[Ranking | Failure] = [FAILED] * len(images)
        good: dict[int, Decoded] = {}
        for number, image in enumerate(images):
            try:
                if image.encoded:
                    self.decode(image.item, image.encoded, image.row)
                good[number] = image._replace(encoded=None)
            except ImageError as error:
                results[number] = Failure(error.code, str(error))
        if good:
            for number, result in zip(good, self.results(list(good.values()), top_k), strict=True):
                results[number] = result
        return results

    def halves(self, images: Sequence[Decoded], top_k: int) -> list[Ranking | Failure]:
        """The same, in two passes; if it was the size that the model failed on, batches grow no larger any more."""
        self.metrics.add(BATCH_SPLITS)
        half = len(images) - len(images) // 2
        results = self.results(images[:half], top_k) + self.results(images[half:], top_k)
        failed = any(result in (FAILED, NO_MEMORY) for result in results)
        if half < self.batch_size and not failed:
            self.batch_size = half
            logger.warning("the model fails on larger batches", extra={"batch_size": half})
        return results
