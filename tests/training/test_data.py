import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.conftest import PhotoFolder
from training import folder, pixels
from training.data import Images, Source, divided
from training.pixels import Decoded, InMemory, in_order, shuffled


def numbered(counts: Sequence[int]) -> Images:
    """Images whose only pixel is their number, so that one can follow them."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    return Images(torch.arange(len(labels)).view(-1, 1, 1, 1), labels)


def numbers(images: Images) -> list[int]:
    assert isinstance(images.pictures, torch.Tensor)
    return images.pictures.flatten().tolist()


@given(st.lists(st.integers(2, 60), min_size=2, max_size=6), st.floats(0.01, 0.6), st.integers(0, 2**32))
def test_a_split_takes_every_image_once_and_each_class_in_equal_parts(
    counts: list[int], share: float, seed: int
) -> None:
    rest, drawn = divided(numbered(counts), min(share, 0.6), seed)

    assert list(range(sum(counts))) == sorted(numbers(rest) + numbers(drawn))
    expected = [max(1, round(share * count)) for count in counts]
    assert expected == torch.bincount(drawn.labels, minlength=len(counts)).tolist()


def test_a_split_follows_its_seed() -> None:
    images = numbered([50, 50])

    assert numbers(divided(images, 10, 7)[1]) == numbers(divided(images, 10, 7)[1])
    assert numbers(divided(images, 10, 7)[1]) != numbers(divided(images, 10, 8)[1])


def test_no_validation_means_every_image_is_trained_on() -> None:
    source = Source("x", ("a", "b"), {"train": numbered([5, 5]), "val": numbered([1, 1])})

    assert ["train"] == list(source.validated(0, 0).splits)
    assert 10 == len(source.validated(0, 0).splits["train"])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_batches_hold_every_image_in_order(count: int) -> None:
    split = InMemory(torch.arange(count).view(-1, 1, 1, 1), torch.arange(count))

    assert list(range(count)) == torch.cat([labels for _, labels in split.batches(in_order(count, 8))]).tolist()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawing_by_weight_shows_rare_classes_as_often_as_others() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    weights = torch.tensor([1 / 900, 1 / 100])[labels]
    drawn = labels[torch.cat(list(shuffled(1000, 64, seeded(0), weights)))]

    assert 1000 == len(drawn)
    assert 400 < int(drawn.sum()) < 600


def test_shuffled_batches_hold_every_image_but_a_last_one_alone() -> None:
    split = InMemory(torch.arange(17).view(-1, 1, 1, 1), torch.arange(17))
    batches = [labels for _, labels in split.batches(shuffled(17, 8, seeded(1)))]

    assert [8, 8] == [len(labels) for labels in batches]
    assert 16 == len(set(torch.cat(batches).tolist()))


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_decoded_by_workers_are_those_kept_in_memory(
    photos: PhotoFolder, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder.read_folder(photos())
    kept = pixels.prepare(source, 16, 0.875, workers, tmp_path).splits["train"]
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "MEMORY", 0)
        decoded = pixels.prepare(source, 16, 0.875, workers, tmp_path).splits["train"]
    assert isinstance(kept, InMemory)
    assert isinstance(decoded, Decoded)

    for seed in (None, 3):
        expected, found = (
            list(split.batches(in_order(36, 7) if seed is None else shuffled(36, 7, seeded(seed))))
            for split in (kept, decoded)
        )
        assert len(expected) == len(found)
        assert all(
            torch.equal(a, b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True)
        )


def fingerprint(root: Path) -> str:
    """Of the folder, divided by another seed each time: it must not matter."""
    source = folder.read_folder(root).validated(0.2, seed=hash(root))
    return pixels.prepare(source, 16, 1.0, 0, root.parent).fingerprint


def test_the_fingerprint_is_that_of_the_content(photos: PhotoFolder) -> None:
    root = photos({"blue": 5, "red": 5})
    lines = sorted(
        f"fit {path.parent.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in root.rglob("*.*")
    )
    before = hashlib.sha256("".join(lines).encode()).hexdigest()

    assert before == fingerprint(root)
    (root / "red" / "000.jpg").rename(root / "red" / "other.jpg")
    assert before == fingerprint(root)
    (root / "red" / "other.jpg").rename(root / "blue" / "other.jpg")
    assert before != fingerprint(root)
