"""Bulk scoring on a Ray cluster, by Ray Data: every node sees the same files, and an actor a core, or a GPU, scores."""

import logging
import os
import pickle
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from models import cores
from models.manifest import Manifest
from service.bulk.errors import Mistake
from service.bulk.images import Input, look
from service.bulk.rows import Row, Rows
from service.bulk.scoring import Task, batches_of, scorer_of

CHUNK = 256  # images that an actor takes and gives back together: what a kill can cost each


def scored(order: Namespace, manifest: Manifest, found: Input, first: int) -> Rows:
    """The rows of all images from `first` on, in order, by a cluster that runs, or else one that ends with this.

    Raises:
        Mistake: Ray is not installed, or a node sees other files.
    """
    # Nothing is sent home; and Ray's own errors, which come as exceptions too, are not told in between.
    for name, value in ("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal"):
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError:
        raise Mistake("--ray needs Ray: pip install 'darkroom[ray]'") from None
    if ":" in order.device:
        raise Mistake(f"--device {order.device}: which of its GPUs is Ray's to decide; say cuda")
    order = Namespace(**vars(order) | {"input": order.input.absolute(), "model": order.model.absolute()})
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Mistake(f"Ray: {last_line(error)}") from None
    try:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(there.get("GPU", 0)) if order.device != "cpu" else 0
        if order.device == "cuda" and not gpus:
            raise Mistake("--device cuda: this cluster has no GPU")
        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        for name in ("ray.data", "ray.data.dataset"):
            logging.getLogger(name).setLevel(logging.ERROR)
        count = found.count - first
        numbers = ray.data.range(count, override_num_blocks=-(-count // CHUNK))
        rows = numbers.map_batches(
            Actor,
            fn_constructor_args=(order, manifest, found.identity, first, bool(gpus)),
            batch_size=CHUNK,
            compute=ActorPoolStrategy(min_size=1, max_size=max(1, gpus or int(there.get("CPU", 0)) - 1)),
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
        )
        for batch in rows.iter_batches(batch_size=None):
            yield [pickle.loads(row) for row in batch["row"]]
    except ray.exceptions.RayError as error:
        raise Mistake(f"{last_line(error)}; the same command goes on") from None
    finally:
        ray.shutdown()


def last_line(error: Exception) -> str:
    """What happened, without where in Ray."""
    return str(error).strip().rpartition("\n")[2]


class Actor:
    """One of Ray's processes: an engine, and its own look at the files."""

    def __init__(self, order: Namespace, manifest: Manifest, identity: str, first: int, on_gpu: bool) -> None:
        """Load, prove and warm.

        Raises:
            Mistake: the model cannot be used here, or the images are others than where the command was given.
        """
        self.found, self.first, self.most = look(order.input, order.column), first, order.max_batch_size
        if self.found.identity != identity:
            raise Mistake(f"{order.input}: a node sees other names there; all need the same files")
        device, sharing = ("cuda", 1) if on_gpu else ("cpu", cores.available())
        self.scorer = scorer_of(Task(order.model, manifest, device, order.dtype, self.most, sharing))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Rows, pickled, for images by their numbers."""
        rows: list[Row] = []
        for run in runs([self.first + int(number) for number in batch["id"]]):
            images = islice(self.found.since(run[0]), len(run))
            rows += [row for some in batches_of(images, self.most) for row in self.scorer.score(some)]
        return {"row": [pickle.dumps(row) for row in rows]}


def runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Numbers that follow each other, together."""
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in run]
