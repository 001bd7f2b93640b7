import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.classifier import Classifier
from training import loop
from training.device import choose_device
from training.errors import Diverged
from training.loop import Epoch, Training, fit
from training.optimizer import parameter_groups, share
from training.pixels import InMemory
from training.recipe import Recipe
from training.terminal import bar
from training.weights import build

CPU = torch.device("cpu")


def colours(n: int, seed: int) -> InMemory:
    """Noise, redder in class 0 and bluer in class 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    pixels = torch.randint(0, 200, (n, 3, 16, 16), generator=generator)
    pixels[torch.arange(n), 2 * labels] += 40
    return InMemory(pixels.to(torch.uint8), labels)


def recipe(**values: Any) -> Recipe:
    return some(arch="compact_cnn", input_size=16, batch_size=16, epochs=3, flip=True, shift=2, **values)


def some(**values: Any) -> Recipe:
    return Recipe(**values)


def trained(
    recipe: Recipe, *, stop_after: int | None = None, validated: bool = True
) -> tuple[Classifier, list[Epoch], list[int]]:
    """A classifier after `fit`, the epochs, and the numbers of those kept."""
    choose_device("cpu", recipe.seed)
    classifier = build(recipe, 2)
    batches = iter(range(1_000_000))
    training, kept = Training(classifier, recipe, CPU, colours(96, seed=1)), list[int]()
    for _ in fit(
        training,
        colours(96, seed=1),
        colours(40, seed=2) if validated else None,
        stopped=lambda: stop_after is not None and next(batches) >= stop_after,
        progress=bar(1, "test"),
    ):
        kept.append(training.kept)
    return classifier, training.history, list(dict.fromkeys(kept))


def digest(classifier: Classifier) -> str:
    state = classifier.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "one-cycle"])
def test_the_same_seed_gives_the_same_weights(optimizer: str, schedule: str) -> None:
    chosen = recipe(optimizer=optimizer, schedule=schedule, lr=1e-2)

    assert digest(trained(chosen)[0]) == digest(trained(chosen)[0])


def test_another_seed_gives_other_weights() -> None:
    assert digest(trained(recipe(seed=1))[0]) != digest(trained(recipe(seed=2))[0])


def test_the_loss_falls() -> None:
    losses = [epoch.loss for epoch in trained(recipe(lr=1e-2))[1]]

    assert losses[-1] < losses[0] / 2


SCHEDULES = ("constant", "cosine", "linear", "one-cycle")


def test_a_schedule_sets_the_learning_rate_over_the_whole_run() -> None:
    ends = {name: trained(recipe(schedule=name))[1][-1].lr for name in SCHEDULES}

    assert ends["constant"] == 1e-3
    assert ends["cosine"] == pytest.approx(0, abs=1e-9)
    assert ends["linear"] == pytest.approx(0, abs=1e-9)
    assert ends["one-cycle"] < 1e-7


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_that_warms_up_is_highest_at_the_end_of_that(schedule: str) -> None:
    chosen = some(schedule=schedule, warm_up=0.25)
    rates = [share(chosen, step / 100) for step in range(101)]

    assert rates[0] == pytest.approx(0.2)
    assert 25 == rates.index(max(rates))
    assert rates[25] == 1
    assert rates[100] == pytest.approx(0)
    assert sorted(rates[:26]) == rates[:26]
    assert sorted(rates[25:], reverse=True) == rates[25:]


def test_rates_and_decay_differ_by_layer_and_kind() -> None:
    chosen = some(arch="compact_cnn", lr=0.1, backbone_lr=0.1, bias_lr=4, weight_decay=0.3)
    groups = list(parameter_groups(chosen, build(chosen, 2).network))

    told = [(group["lr"], group["weight_decay"]) for group in groups]
    assert [pytest.approx(pair) for pair in [(0.1, 0.3), (0.4, 0), (0.01, 0.3), (0.04, 0)]] == told
    assert sum(len(group["params"]) for group in groups) == len(list(build(chosen, 2).network.parameters()))


def test_the_best_epoch_by_validation_accuracy_is_kept_and_ties_go_to_the_lower_loss() -> None:
    epoch = Epoch(1, 0.5, 0.9, (0.4, 0.8), 1e-3, 96, 1.0)

    assert epoch.better_than(None)
    assert replace(epoch, validation=(0.5, 0.9)).better_than(epoch)
    assert replace(epoch, validation=(0.3, 0.8)).better_than(epoch)
    assert not replace(epoch, validation=(0.4, 0.8)).better_than(epoch)
    assert not replace(epoch, validation=(0.3, 0.7)).better_than(epoch)


def test_the_epochs_that_are_kept_are_those_better_than_all_before() -> None:
    _, history, kept = trained(recipe(lr=3e-2))
    best: list[Epoch] = []
    for epoch in history:
        if not best or epoch.better_than(best[-1]):
            best.append(epoch)

    assert [epoch.number for epoch in best] == kept


def test_without_validation_every_epoch_replaces_the_one_before() -> None:
    _, history, kept = trained(recipe(), validated=False)

    assert [1, 2, 3] == kept
    assert [None] * 3 == [epoch.validation for epoch in history]


def test_a_loss_that_is_no_number_stops_with_advice() -> None:
    with pytest.raises(Diverged, match=r"the loss became (nan|inf) in epoch \d; try a lower --lr than 1e\+30"):
        trained(recipe(optimizer="sgd", lr=1e30))


def test_an_epoch_that_is_cut_short_does_not_count() -> None:
    assert [] == trained(recipe(), stop_after=2)[1]
    assert [1] == [epoch.number for epoch in trained(recipe(), stop_after=9)[1]]


def test_training_changes_neither_the_validation_images_nor_the_temperature() -> None:
    classifier, _, _ = trained(recipe())

    assert 1.0 == float(classifier.temperature)
    accuracy = loop.evaluate(classifier, colours(40, seed=2), CPU)
    assert accuracy == loop.evaluate(classifier, colours(40, seed=2), CPU)


def test_an_average_is_what_is_measured_and_kept() -> None:
    choose_device("cpu", 0)
    training = Training(build(recipe(ema=0.99), 2), recipe(ema=0.99), CPU, colours(96, seed=1))
    list(fit(training, colours(96, seed=1), colours(40, seed=2), lambda: False, bar(1, "test")))
    name = next(iter(training.best))

    assert training.judged is not training.classifier
    assert torch.equal(training.best[name], training.judged.network.state_dict()[name])
    assert not torch.equal(training.best[name], training.classifier.network.state_dict()[name])


def test_an_average_of_nothing_is_the_last_weights() -> None:
    plain, averaged = trained(recipe())[0], trained(recipe(ema=1e-9))[0]

    assert digest(plain) == digest(averaged)


def test_batches_that_make_one_step_give_the_gradient_of_one_large_batch() -> None:
    weights = []
    for size, accumulate in ((96, 1), (24, 4)):
        chosen = some(batch_size=size, accumulate=accumulate, epochs=3, optimizer="sgd", lr=0.1)
        choose_device("cpu", 0)
        training = Training(build(chosen, 2), chosen, CPU, resized(colours(96, seed=1)))
        list(fit(training, resized(colours(96, seed=1)), None, lambda: False, bar(1, "test")))
        weights.append(training.best)

    assert all(torch.allclose(value, weights[1][name], atol=1e-5) for name, value in weights[0].items())


def resized(split: InMemory) -> InMemory:
    """For SimpleCNN, which has no batch normalisation: 32 px."""
    return InMemory(split.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), split.labels)


def test_training_ends_when_no_epoch_was_better_for_long_enough() -> None:
    _, history, kept = trained(recipe(lr=1e-9, patience=1).model_copy(update={"epochs": 30}))

    assert len(history) == kept[-1] + 1 < 30


def test_the_last_layer_learns_first_where_that_is_asked_for() -> None:
    chosen = recipe(head_epochs=3)
    choose_device("cpu", 0)
    training = Training(build(chosen, 2), chosen, CPU, colours(96, seed=1))
    before = {name: value.clone() for name, value in training.classifier.network.named_parameters()}
    list(fit(training, colours(96, seed=1), None, lambda: False, bar(1, "test")))
    after = dict(training.classifier.network.named_parameters())

    assert {"classifier.weight", "classifier.bias"} == {
        name for name, value in before.items() if not torch.equal(value, after[name])
    }


@pytest.mark.parametrize("precision", ["auto", "bf16", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_precision_learns(precision: str, channels_last: bool) -> None:
    losses = [epoch.loss for epoch in trained(recipe(lr=1e-2, precision=precision, channels_last=channels_last))[1]]

    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
def test_compiled_steps_learn_what_others_do() -> None:
    (plain,), (compiled,) = (
        trained(recipe(compile=chosen).model_copy(update={"epochs": 1}))[1] for chosen in (False, True)
    )

    assert plain.loss == pytest.approx(compiled.loss, rel=1e-3)
    assert plain.validation == pytest.approx(compiled.validation, rel=1e-3)


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_balance_lets_a_rare_class_be_learnt(balance: str) -> None:
    """Of 100 pictures that cannot be told apart, 10 are of class 1: an honest answer is 0.1, a balanced one 0.5."""
    split = InMemory(torch.zeros(100, 3, 16, 16, dtype=torch.uint8), torch.tensor([1] * 10 + [0] * 90))
    answers: dict[str, float] = {}
    for chosen in (recipe(), recipe(balance=balance)):
        chosen = chosen.model_copy(update={"epochs": 20, "lr": 1e-2, "batch_size": 50})
        choose_device("cpu", 0)
        training = Training(build(chosen, 2), chosen, CPU, split)
        list(fit(training, split, None, lambda: False, bar(1, "test")))
        training.classifier.eval()
        answers[chosen.balance] = float(training.classifier(split.pixels[:1]).detach()[0, 1])

    assert answers["none"] < 0.25
    assert 0.35 < answers[balance] < 0.65


def test_a_network_that_begins_from_images_does_so_before_its_first_step() -> None:
    chosen = some(arch="airbench93", batch_size=32)
    choose_device("cpu", 0)
    training = Training(build(chosen, 2), chosen, CPU, resized(colours(96, seed=1)))
    pixels = resized(colours(96, seed=1)).pixels
    whiten = training.classifier.network.get_submodule("whiten")
    patches = whiten((pixels / 255 - 0.5) / 0.5).permute(0, 2, 3, 1).flatten(0, 2)[:, :12]

    assert torch.allclose((patches.T @ patches) / len(patches), torch.eye(12), atol=0.2)


def test_a_network_that_begins_from_images_is_not_run_on_them() -> None:
    chosen, kept = some(arch="airbench93", batch_size=32), list[int]()

    def pack(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        training = Training(build(chosen, 2), chosen, CPU, resized(colours(96, seed=1)))
    counted = [value for name, value in training.classifier.named_buffers() if name.endswith("num_batches_tracked")]

    assert not kept, "nothing is learnt yet"
    assert [0] * len(counted) == [int(count) for count in counted]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_ends_where_a_last_batch_of_one_image_is_left_out(schedule: str) -> None:
    chosen = recipe(schedule=schedule, lr=0.1)
    training = Training(build(chosen, 2), chosen, CPU, colours(17, seed=1))
    *_, last = fit(training, colours(17, seed=1), None, stopped=lambda: False, progress=bar(1, "test"))

    assert last.lr == pytest.approx(0, abs=1e-6)
