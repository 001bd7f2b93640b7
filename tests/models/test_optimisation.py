"""Optimisation: the goldens decide, and the clock; nothing that makes the engine fast touches any answer."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models import artifact, optimisation
from models.engine import LOW_PRECISION_TOLERANCE, Engine, Plan, Sharing, sample
from models.errors import ArtifactError
from models.optimisation import CPU_STEPS, enough

CPU = torch.device("cpu")
HOUSE = Path(__file__).parents[2]
FAILING = """
import sys
from pathlib import Path
import torch
from models import artifact, engine, optimisation

loaded = artifact.load(Path(sys.argv[1]))
tried = engine.Engine(loaded, torch.device("cpu"), "fp32", 6, 6, loaded.module, engine.Sharing(1))
with torch.inference_mode():
    for name in sys.argv[2:]:
        tried = optimisation.CPU_STEPS[name](tried)
    for _ in range(20):
        try:
            tried.forward(torch.zeros((1, 32, 32, 3), dtype=torch.uint8).expand(1 << 40, -1, -1, -1))
        except RuntimeError as error:
            print("in logits" in str(error), "can't allocate memory" in str(error))
"""


def rows(n: int, seed: int = 0) -> list[Tensor]:
    """`n` random rows, uint8 (32, 32, 3)."""
    drawn = torch.Generator().manual_seed(seed)
    return list(torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=drawn))


def golden_rows(source: Engine) -> list[Tensor]:
    return list(source.artifact.goldens.pixels.permute(0, 2, 3, 1))


def with_module(change: Callable[[Any], Callable[[Tensor], Tensor]]) -> optimisation.Step:
    """A step that puts another function in the module's place."""
    return lambda before: replace(before, module=change(before.module))


def inverted(module: Any) -> Callable[[Tensor], Tensor]:
    """Answers as for the negative."""
    return lambda pixels: module(255 - pixels)


def failing(_: Engine) -> Engine:
    """A step that this machine cannot take."""
    raise RuntimeError("a long way down\nno such kernel")


def laboured(module: Any) -> Callable[[Tensor], Tensor]:
    """The same answers in so many times the time that it shows on a busy machine too."""
    return lambda pixels: [module(pixels) for _ in range(20)][-1]


def test_each_step_on_the_cpu_is_taken_or_said_why_not(prepared: Engine) -> None:
    assert {*CPU_STEPS, "threads", "batch_size"} == set(prepared.steps)
    assert all(prepared.steps[name].startswith(("taken", "dropped: takes ")) for name in CPU_STEPS)
    assert "from batch size 1" in prepared.steps["threads"]


def test_another_process_follows_the_plan_and_answers_the_same(
    prepared: Engine, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(**json.loads(json.dumps(asdict(prepared.plan))))
    monkeypatch.setattr(optimisation, "race", None)  # nothing is timed again
    again = optimisation.prepare(artifact.load(saved), CPU, max_batch_size=6, plan=plan)

    assert plan == again.plan
    torch.testing.assert_close(prepared.predict(sample(prepared, 3)), again.predict(sample(again, 3)))


@pytest.mark.parametrize("change", [failing, with_module(inverted)], ids=["fails", "changes the answers"])
def test_where_a_step_of_the_plan_does_not_hold_all_are_tried_as_without_a_plan(
    prepared: Engine, saved: Path, monkeypatch: pytest.MonkeyPatch, change: optimisation.Step
) -> None:
    monkeypatch.setitem(optimisation.CPU_STEPS, "planes", change)
    plan = replace(prepared.plan, steps=dict.fromkeys(prepared.steps, "taken"), curve={"1": 60.0})
    again = optimisation.prepare(artifact.load(saved), CPU, max_batch_size=6, plan=plan)

    assert again.steps["planes"].startswith("dropped: ")
    assert 1 < len(again.curve)
    assert 0 < again.curve[1] < 60


def test_a_step_that_pays_is_taken(plain: Engine) -> None:
    fast = optimisation.take(with_module(laboured)(plain), "fast", lambda _: plain)

    assert "taken" == fast.steps["fast"]
    assert fast.module is plain.module


def test_a_step_that_does_not_pay_is_dropped_and_said_so(plain: Engine) -> None:
    after = optimisation.take(plain, "labour", with_module(laboured))

    factor = after.steps["labour"].removeprefix("dropped: takes ").removesuffix(" times as long")
    assert float(factor) > 2
    assert after.module is plain.module


def test_a_step_that_changes_the_goldens_answers_is_dropped_and_said_so(plain: Engine) -> None:
    after = optimisation.take(plain, "spoil", with_module(inverted))

    assert after.steps["spoil"].startswith("dropped: a probability off by")
    assert after.module is plain.module


def test_a_step_that_fails_is_dropped_with_its_message(plain: Engine) -> None:
    after = optimisation.take(plain, "fail", failing)

    assert {"fail": "dropped: no such kernel"} == after.steps
    assert after.module is plain.module


def test_a_step_after_which_the_model_fails_is_dropped_with_its_message(plain: Engine) -> None:
    after = optimisation.take(plain, "cut", with_module(lambda module: lambda pixels: module(pixels[:, :, 1:])))

    assert after.steps["cut"].startswith("dropped: builtins.ValueError: pixels must have the shape (N, 3, 32, 32)")
    assert after.module is plain.module


def test_a_dropped_step_leaves_those_before_it_and_their_record(plain: Engine) -> None:
    frozen = optimisation.freeze(plain)
    after = optimisation.take(replace(frozen, steps={"freeze": "taken"}), "spoil", with_module(inverted))

    assert ["freeze", "spoil"] == list(after.steps)
    assert after.module is frozen.module
    assert {} == plain.steps


@pytest.mark.parametrize("name", CPU_STEPS)
def test_a_step_that_is_dropped_leaves_the_engine_as_it_was(plain: Engine, name: str) -> None:
    images, strides = rows(4), [weight.stride() for weight in plain.module.parameters()]
    before = plain.predict(images)
    after = optimisation.take(plain, name, lambda given: with_module(inverted)(CPU_STEPS[name](given)))

    assert after.steps[name].startswith("dropped: a probability off by")
    assert torch.equal(before, after.predict(images))
    assert strides == [weight.stride() for weight in after.module.parameters()]


def test_a_frozen_module_stays_as_it_was_when_another_is_optimised(plain: Engine) -> None:
    frozen = optimisation.freeze(plain)
    before = str(frozen.module.graph)
    optimised = optimisation.optimize_for_inference(frozen)

    assert "mkldnn" in str(optimised.module.graph)
    assert before == str(frozen.module.graph)


@pytest.mark.parametrize("name", CPU_STEPS)
def test_a_step_alone_does_not_change_the_answers(plain: Engine, name: str) -> None:
    images = rows(6)

    torch.testing.assert_close(plain.predict(images), CPU_STEPS[name](plain).predict(images), atol=1e-4, rtol=0)


# Not after `planes`, where the copy before the module would fail.
@pytest.mark.parametrize("names", [[], ["freeze"], ["optimize_for_inference"], list(CPU_STEPS)[:-1]], ids="+".join)
def test_an_operator_that_fails_raises_after_any_steps(saved: Path, names: list[str]) -> None:
    command = [sys.executable, "-c", FAILING, str(saved), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HOUSE)

    assert (0, "True True\n" * 20) == (done.returncode, done.stdout), done.stderr


def test_workers_share_the_cores_and_each_has_one_at_least(saved: Path) -> None:
    loaded = artifact.load(saved)
    counts = [optimisation.prepare(loaded, CPU, max_batch_size=1, workers=workers).cores for workers in (1, 1000)]

    assert counts[0] >= counts[1] == 1


@pytest.mark.parametrize(
    ("curve", "pays"),
    [
        ({1: 0.020, 2: 0.020, 4: 0.020, 6: 0.020}, 6),
        ({1: 0.010, 2: 0.020, 4: 0.040, 6: 0.060}, 4),
        ({1: 0.010, 2: 0.020, 4: 0.040, 6: 0.059}, 4),
        ({1: 0.010, 2: 0.020, 4: 0.040, 6: 0.055}, 6),
        ({1: 0.010, 2: 0.020, 4: 0.050, 6: 0.090}, 4),
        ({1: 0.010, 2: 0.020}, 2),
    ],
    ids=[
        "a pass takes as long for any number of images",
        "each image takes its time",
        "a larger batch is faster by too little to tell",
        "a larger batch is faster",
        "a larger batch is slower",
        "the largest is smaller than what timing tells apart",
    ],
)
def test_batches_grow_only_while_that_pays(plain: Engine, curve: dict[int, float], pays: int) -> None:
    limited = optimisation.limit_batches(replace(plain, curve=curve))

    assert pays == limited.batch_size
    assert limited.steps["batch_size"].startswith(str(pays))
    assert plain.max_batch_size == limited.max_batch_size


@pytest.mark.parametrize(
    ("longest", "tried"),
    [(math.inf, {1, 2, 4, 6}), (0.0, {1, 2, 4})],
    ids=["no pass is too long", "every pass is so long that whoever comes meanwhile waits"],
)
def test_a_pass_is_timed_for_each_size_that_is_worth_trying(
    plain: Engine, longest: float, tried: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimisation, "LONGEST_PASS_S", longest)
    curve = optimisation.measure(plain).curve

    assert tried == set(curve)
    assert all(seconds > 0 for seconds in curve.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_lower_precision_answers_the_goldens_within_its_tolerance(saved: Path, dtype: str) -> None:
    lower = optimisation.prepare(artifact.load(saved), CPU, dtype, max_batch_size=2)
    found = torch.cat([lower.predict([row]) for row in golden_rows(lower)])
    expected = lower.artifact.goldens.probabilities

    assert torch.float32 == found.dtype
    assert torch.equal(expected.argmax(1), found.argmax(1))
    torch.testing.assert_close(expected, found, atol=LOW_PRECISION_TOLERANCE, rtol=0)


def test_wrong_golden_answers_stop_the_start(saved: Path) -> None:
    loaded = artifact.load(saved)
    wrong = replace(loaded, goldens=replace(loaded.goldens, probabilities=loaded.goldens.probabilities.roll(1, 0)))

    with pytest.raises(ArtifactError, match="its goldens' answers on cpu in fp32"):
        optimisation.prepare(wrong, CPU)


def test_wrong_golden_pixels_stop_the_start(saved: Path) -> None:
    loaded = artifact.load(saved)
    shifted = loaded.goldens.pixels.clone()
    shifted[0] ^= 1
    wrong = replace(loaded, goldens=replace(loaded.goldens, pixels=shifted))

    with pytest.raises(ArtifactError, match="golden 0's pixels within 0 levels, found 1 levels off"):
        optimisation.prepare(wrong, CPU)


@pytest.mark.parametrize(
    ("n", "seconds", "expected"),
    [
        (1, {1: 1.05, 2: 1.0}, 1),
        (1, {1: 1.2, 2: 1.0}, 2),
        (1, {1: 2.9, 2: 1.7, 4: 1.05, 8: 1.0}, 4),
        (8, {1: 1.35, 2: 1.0}, 1),
        (8, {1: 1.5, 2: 1.0}, 2),
        (4, {1: 3.0, 2: 1.35, 4: 1.0}, 2),
    ],
)
def test_a_batch_takes_more_threads_only_where_they_pay_well(n: int, seconds: dict[int, float], expected: int) -> None:
    assert expected == enough(seconds, n)


def test_passes_under_way_may_have_all_cores_between_them(prepared: Engine) -> None:
    wide = replace(prepared, sharing=Sharing(8))
    optimisation.share_cores(wide)

    assert wide.sharing.useful[max(wide.sharing.useful)] * wide.passes >= 8
