"""What the pipeline takes for a hang, and what not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from time import clock_gettime, monotonic, thread_time

import pytest
import torch
from PIL import Image

from models import artifact, optimisation
from models.engine import Sharing
from models.formats import FORMATS, MAX_PIXELS
from models.limits import LARGE_AT_ONCE, LARGE_PIXELS, Turn
from service.batching import Pipeline
from service.board import WORD_BYTES
from service.isolation import FAILED, NOT_FINITE, Decoded
from service.metrics import Metrics
from service.settings import Settings
from service.steps import PROGRESS_S, Steps
from service.transport import CANARY, UID, Item, Transport
from tests.pictures import encode

SOON_S = 10
SIDE = int(LARGE_PIXELS**0.5) + 1


@pytest.fixture
def pipeline(model: Path) -> Pipeline:
    """One that nobody has started, on the CPU."""
    prepared = optimisation.prepare(artifact.load(model), torch.device("cpu"), max_batch_size=4)
    settings = Settings(model=model, _cli_parse_args=[])  # type: ignore[call-arg]
    metrics = Metrics(prepared.artifact.manifest.classes)
    return Pipeline(prepared, Transport(1, 1, 1 << 20), settings, metrics)


def test_a_canary_waits_for_no_fuller_batch_and_keeps_no_place_in_one(pipeline: Pipeline) -> None:
    pipeline.max_delay, (row,), begun = SOON_S, pipeline.engine.rows(1), monotonic()
    slot = pipeline.transport.slots_start
    pipeline.transport.words[slot // WORD_BYTES + UID] = 1
    canary = Decoded(Item(0, 1, slot, 0, CANARY, begun, inf), row, None, begun, begun)
    pipeline.decoded.put(canary)

    assert [canary.item] == [image.item for image in pipeline.next_batch()]
    assert monotonic() < begun + SOON_S


@pytest.mark.parametrize(("joining", "least"), [(True, 4), (False, 1)])
def test_a_pass_begins_beside_another_only_with_a_full_batch_where_joining_pays(
    pipeline: Pipeline, joining: bool, least: int
) -> None:
    pipeline.engine = replace(pipeline.engine, sharing=Sharing(2))
    pipeline.isolation.batch_size, pipeline.joining, (row,) = 4, joining, pipeline.engine.rows(1)
    beside = []
    for _ in range(least):
        assert pipeline.take_pass(), "an idle model takes what there is"
        beside.append(pipeline.take_pass())
        pipeline.under_way = 0
        pipeline.decoded.put(Decoded(Item(0, 1, 0, 0, 1, 0.0, inf), row, None, 0.0, 0.0))
    assert [False] * least == beside
    assert pipeline.take_pass()
    assert pipeline.take_pass()
    assert not pipeline.take_pass(), "there are two passes"


@pytest.mark.parametrize(
    ("cores", "curve", "joining"),
    [
        (2, {1: 0.45, 4: 0.59}, True),
        (8, {1: 0.45, 4: 0.59}, False),  # more cores than passes: HTTP and decoding have theirs
        (2, {1: 22.2, 4: 66.3}, False),
    ],
)
def test_images_wait_for_the_pass_under_way_where_passes_take_every_core_and_joining_costs_little(
    pipeline: Pipeline, cores: int, curve: dict[int, float], joining: bool
) -> None:
    engine = replace(pipeline.engine, sharing=Sharing(cores), curve=curve)
    settings = Settings(model=engine.artifact.path, _cli_parse_args=[])  # type: ignore[call-arg]

    assert joining == Pipeline(engine, pipeline.transport, settings, pipeline.metrics).joining


def test_no_thread_hangs_that_waits_for_its_turn_with_a_large_picture(pipeline: Pipeline) -> None:
    large, row, begun = encode(Image.new("RGB", (SIDE, SIDE))), pipeline.engine.rows(1)[0], threading.Event()

    def decode() -> list[str]:
        """What is watched afterwards."""
        pipeline.steps.begin()
        begun.set()
        pipeline.engine.decode(large, FORMATS, MAX_PIXELS, row, pipeline.resting)
        return [thread.name for thread in threading.enumerate() if thread.ident in pipeline.steps.since]

    turns = [Turn() for _ in range(LARGE_AT_ONCE)]
    for turn in turns:
        turn.wait(LARGE_PIXELS + 1)
    with ThreadPoolExecutor(1, "decoding") as pool:
        decoding = pool.submit(decode)
        begun.wait(SOON_S)
        deadline = monotonic() + SOON_S
        while pipeline.steps.since:
            assert monotonic() < deadline, "waiting counts as work"
        for turn in turns:
            with turn:
                pass

        assert ["decoding_0"] == decoding.result(SOON_S)


def test_a_worker_whose_model_has_failed_on_all_for_long_but_works_goes_on(pipeline: Pipeline) -> None:
    pipeline.failing_since = monotonic() - pipeline.patience - 1
    pipeline.judge([FAILED, NOT_FINITE])  # would end this process

    assert pipeline.failing_since > monotonic() - pipeline.patience
    pipeline.judge([FAILED, [(0, 1.0)]])
    assert pipeline.failing_since is None


def test_a_thread_hangs_that_computes_or_waits_for_too_long_and_not_one_that_is_kept_from_the_cores() -> None:
    steps, over, started = Steps(), threading.Event(), threading.Event()

    def spin() -> None:
        steps.begin()
        started.set()
        while not over.is_set():
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(spin)
        started.wait()
        begun = monotonic()
        while not steps.hang(begun, begun, longest=0.2):  # no time passes, so it can only compute
            assert monotonic() < begun + SOON_S
        (step,) = steps.looked_at.values()
        used = clock_gettime(step.clock) - step.begun
        over.set()

    assert used >= 0.2, "computed for so long"
    steps = Steps()
    begun = steps.begin()
    later = begun + 10
    assert not steps.hang(later, later - 0.1, longest=0.2), "the whole process stood still until just now"
    assert steps.hang(later + 0.2, begun, longest=0.2), "it has computed nothing"
    (step,) = steps.looked_at.values()
    while thread_time() - step.seen < 2 * PROGRESS_S:
        pass
    assert not steps.hang(later + 0.3, begun, longest=0.2), "it got on, if slowly"
    steps.begin()
    assert not steps.hang(later + 0.4, later + 0.3, longest=0.2)
    (next_step,) = steps.looked_at.values()
    assert next_step is not step, "what it does now it has just begun"
