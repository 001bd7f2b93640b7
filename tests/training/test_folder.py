from pathlib import Path

import pytest

from tests.training.conftest import QUICK, PhotoFolder
from training import folder
from training.__main__ import main
from training.errors import TrainingError


def test_the_layout_with_splits_is_read_with_classes_by_name(photos: PhotoFolder) -> None:
    source = folder.read_folder(photos({"train/red": 3, "train/blue": 2, "val/red": 1, "val/blue": 1}))

    assert ("blue", "red") == source.classes
    assert {"train": [0, 0, 1, 1, 1], "val": [0, 1]} == {
        name: images.labels.tolist() for name, images in source.splits.items()
    }
    assert "photos" == source.name


def test_class_folders_alone_are_all_training_images_until_divided(photos: PhotoFolder) -> None:
    source = folder.read_folder(photos({"blue": 20, "red": 10}))

    assert ["train"] == list(source.splits)
    divided = source.validated(0.1, seed=0).splits
    assert (27, [0, 0, 1]) == (len(divided["train"]), divided["val"].labels.tolist())


def test_a_class_may_be_called_train(photos: PhotoFolder) -> None:
    assert ("bus", "train") == folder.read_folder(photos({"bus": 2, "train": 2})).classes


def test_pictures_are_found_at_any_depth_and_other_files_passed_over(photos: PhotoFolder) -> None:
    root = photos({"blue": 2, "red": 2, "red/album": 3})
    (root / "red" / "notes.txt").write_text("not a picture")
    (root / "red" / ".hidden.jpg").write_bytes(b"")
    (root / "__MACOSX").mkdir()

    assert 7 == len(folder.read_folder(root).splits["train"])


REFUSED = {
    "one class": ({"red": 3}, "holds one class, red"),
    "an empty class": ({"red": 3, "blue": 0}, "has 1 class folders without a picture: blue"),
    "no pictures": ({"red": 0, "blue": 0}, "holds no pictures"),
    "no folders": ({".hidden": 0}, "holds no pictures"),
    "val/ without train/": ({"val/red": 2, "val/blue": 2}, "has val/ but no train/"),
    "other classes in val/": (
        {"train/red": 2, "train/blue": 2, "val/red": 2, "val/green": 2},
        "blue (missing), green (not in train); 2 in all",
    ),
    "an empty class in test/": (
        {"train/red": 2, "train/blue": 2, "test/red": 2, "test/blue": 0},
        "test has 1 class folders without a picture: blue",
    ),
}


@pytest.mark.parametrize(("layout", "words"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_learnt_from_is_refused(
    layout: dict[str, int], words: str, photos: PhotoFolder
) -> None:
    with pytest.raises(TrainingError) as refused:
        folder.read_folder(photos(layout))

    assert words in str(refused.value)


def train(root: Path, *more: str) -> int:
    """Train in the folder that holds `root`."""
    return main(
        ["--data", str(root), "--out", str(root.parent / "m.pt"), "--run", str(root.parent / "run"), *QUICK, *more]
    )


def test_unreadable_pictures_are_listed_before_the_first_epoch(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos()
    (root / "red" / "empty.jpg").write_bytes(b"")
    (root / "red" / "cut.png").write_bytes((root / "red" / "001.png").read_bytes()[:200])
    (root / "blue" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")

    assert train(root) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "3 unreadable pictures" in captured.err
    assert all(name in captured.err for name in ("empty.jpg", "cut.png", "phone.heic: HEIC/HEIF and AVIF"))
    assert "epoch" not in captured.out
    assert [root] == list(root.parent.iterdir())


def test_many_unreadable_pictures_are_listed_in_a_file(photos: PhotoFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos()
    for index in range(30):
        (root / "red" / f"bad{index:02}.jpg").write_bytes(b"no picture")

    assert train(root, "--workers", "2") == 2
    assert "30 unreadable pictures" in (error := capsys.readouterr().err)
    assert 20 == error.count("bad")
    assert 30 == len((root.parent / "run" / "unreadable.txt").read_text().splitlines())


def test_a_validation_share_that_takes_a_whole_class_is_refused(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(photos({"blue": 1, "red": 9})) == 2
    assert "takes all 1 images of a class" in capsys.readouterr().err


def test_a_folders_name_becomes_a_model_name(tmp_path: Path) -> None:
    assert ["My-photos-2026", "folder"] == [folder.name_of(tmp_path / name) for name in ("My photos (2026)", "---")]


@pytest.mark.parametrize("layout", [{"Train/a": 2, "Train/b": 2}, {"train/a": 2, "train/b": 2, "valid/a": 1}])
def test_a_misspelt_split_is_refused_and_not_taken_for_a_class(photos: PhotoFolder, layout: dict[str, int]) -> None:
    with pytest.raises(TrainingError, match="rename or remove it"):
        folder.read_folder(photos(layout))


def test_pictures_of_programs_in_hidden_folders_are_passed_over(photos: PhotoFolder) -> None:
    root = photos({"blue": 2, "red": 2, "red/.ipynb_checkpoints": 2, "red/@eaDir": 1})

    assert 4 == len(folder.read_folder(root).splits["train"])


def test_a_file_that_is_no_artifact_is_not_overwritten(
    photos: PhotoFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.jpg"
    mine.write_bytes(b"precious")

    assert 2 == main(["--data", str(photos({"blue": 2, "red": 2})), *QUICK, "--out", str(mine)])
    assert "exists and is no artifact" in capsys.readouterr().err
    assert b"precious" == mine.read_bytes()
