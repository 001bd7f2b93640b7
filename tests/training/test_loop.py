import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.classifier import Classifier
from training import loop
from training.errors import Diverged
from training.loop import Epoch, Training, augment, fit
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
    return Recipe(arch="compact_cnn", input_size=16, batch_size=16, epochs=3, flip=True, shift=2, **values)


def trained(
    recipe: Recipe, *, stop_after: int | None = None, validated: bool = True
) -> tuple[Classifier, list[Epoch], list[int]]:
    """A classifier after `fit`, the epochs, and the numbers of those kept."""
    loop.choose_device("cpu", recipe.seed)
    classifier = build(recipe, 2)
    batches = iter(range(1_000_000))
    training, kept = Training(classifier, recipe, CPU, 96), list[int]()
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


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_the_same_seed_gives_the_same_weights(optimizer: str, schedule: str) -> None:
    chosen = recipe(optimizer=optimizer, schedule=schedule, lr=1e-2)

    assert digest(trained(chosen)[0]) == digest(trained(chosen)[0])


def test_another_seed_gives_other_weights() -> None:
    assert digest(trained(recipe(seed=1))[0]) != digest(trained(recipe(seed=2))[0])


def test_the_loss_falls() -> None:
    losses = [epoch.loss for epoch in trained(recipe(lr=1e-2))[1]]

    assert losses[-1] < losses[0] / 2


def test_a_schedule_sets_the_learning_rate_over_the_whole_run() -> None:
    ends = {name: trained(recipe(schedule=name))[1][-1].lr for name in ("constant", "cosine", "one-cycle")}

    assert ends["constant"] == 1e-3
    assert ends["cosine"] == pytest.approx(0, abs=1e-9)
    assert ends["one-cycle"] < 1e-7


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


def gradient(n: int) -> Tensor:
    """Images whose every pixel tells its column, and in another channel its row: uint8 (n, 3, 16, 16)."""
    place = torch.arange(16, dtype=torch.uint8)
    image = torch.stack([place.expand(16, 16), place[:, None].expand(16, 16), torch.zeros(16, 16, dtype=torch.uint8)])
    return image.repeat(n, 1, 1, 1)


def test_augmentation_mirrors_half_of_the_images_and_leaves_the_others() -> None:
    pixels = gradient(400)
    changed = augment(pixels, flip=True, shift=0, generator=torch.Generator().manual_seed(0))
    mirrored = (changed == pixels.flip(3)).flatten(1).all(1)

    assert torch.equal(mirrored, ~(changed == pixels).flatten(1).all(1))
    assert 150 < int(mirrored.sum()) < 250


def test_augmentation_moves_each_image_by_itself_and_repeats_its_edges() -> None:
    changed = augment(gradient(200), flip=False, shift=3, generator=torch.Generator().manual_seed(0)).int()
    across, down = changed[:, 0, 0, 8] - 8, changed[:, 1, 8, 0] - 8

    assert set(range(-3, 4)) == set(across.tolist()) == set(down.tolist())
    place = torch.arange(16)
    assert torch.equal(changed[:, 0, 5], (place + across[:, None]).clamp(0, 15))
    assert torch.equal(changed[:, 1, :, 5], (place + down[:, None]).clamp(0, 15))


def test_no_augmentation_is_none() -> None:
    pixels = gradient(3)

    assert augment(pixels, flip=False, shift=0, generator=torch.Generator()) is pixels
