"""`check` finds every kind of defect that is planted in a sound folder, where it is, and nothing else."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import encode, noise
from tests.training.conftest import QUICK, PhotoFolder
from training.__main__ import main
from training.findings import KINDS

SOUND = {f"{split}/{kind}": 12 for split in ("train", "val") for kind in ("blue", "red")}
Row = tuple[str, str, str, str]


def check(root: Path, expected: int) -> list[Row]:
    """What `check` lists of a folder, less the heading."""
    listing = root.parent / "findings.csv"
    assert expected == main(["check", str(root), "--list", str(listing)])
    with listing.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [(level, kind, where, detail) for level, kind, where, detail in csv.reader(file)][1:]


def picture(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A picture of soft blotches, like no other seed's."""
    small = Image.fromarray(np.random.RandomState(seed).randint(0, 256, (12, 12, 3)).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def written(path: Path, body: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def broken_link(root: Path) -> Path:
    (root / "train/red/link.jpg").symlink_to(root / "nowhere.jpg")
    return root / "train/red/link.jpg"


def unreadable(root: Path) -> Path:
    (root / "train/red/album.jpg").mkdir()
    return root / "train/red/album.jpg"


def another_case(root: Path) -> Path:
    for split in ("train", "val"):
        for seed in range(12):
            saved(root / split / "Red" / f"{seed}.png", picture(seed + 100 * (split == "val")))
    return root / "train"


def copied(source: str, target: str) -> Callable[[Path], Path]:
    """Plant a copy, and say where `check` tells of it: at the first."""

    def plant(root: Path) -> Path:
        return min(Path(shutil.copy(root / source, root / target)), root / source)

    return plant


def saved_anew(split: str) -> Callable[[Path], Path]:
    """Plant a picture, and in a split the same one smaller and compressed, and say where the second is."""

    def plant(root: Path) -> Path:
        saved(root / "train/red/a.png", picture(7, 192, 160))
        return saved(root / split / "red/b.jpg", picture(7, 192, 160).resize((120, 100)), quality=70)

    return plant


def many(root: Path) -> str:
    for seed in range(108):
        saved(root / "train/blue" / f"more{seed}.png", picture(seed))
    return "red"


def a_small_class(root: Path) -> str:
    for split, count in (("train", 9), ("val", 2)):
        for seed in range(count):
            saved(root / split / "green" / f"{seed}.png", picture(seed + 100 * (split == "val")))
    return "green"


ONE = "train/red/one"
TURNED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # TIFF: orientation 6
PLANTS: dict[str, tuple[str, Callable[[Path], Path | str]]] = {
    "a link to nothing": ("broken_link", broken_link),
    "what cannot be read": ("unreadable", unreadable),
    "no bytes": ("empty_file", lambda root: written(root / f"{ONE}.jpg", b"")),
    "a phone's HEIC": ("unsupported", lambda root: written(root / f"{ONE}.heic", b"\0\0\0\x18ftypheic")),
    "text called a picture": ("unsupported", lambda root: written(root / f"{ONE}.jpg", b"not a picture")),
    "half a JPEG": ("damaged", lambda root: written(root / f"{ONE}.jpg", encode(picture(1), "JPEG")[:1500])),
    "half a PNG": ("damaged", lambda root: written(root / f"{ONE}.png", encode(picture(1), "PNG")[:1500])),
    "half a WebP": ("damaged", lambda root: written(root / f"{ONE}.webp", encode(picture(1), "WEBP")[:500])),
    "64 million pixels": ("oversized", lambda root: saved(root / f"{ONE}.png", Image.new("1", (8000, 8000)))),
    "Red beside red": ("same_name", another_case),
    "a picture beside the classes": ("stray", lambda root: saved(root / "train/one.png", picture(1))),
    "a picture beside the splits": ("stray", lambda root: saved(root / "later/red/one.png", picture(1))),
    "no extension": ("unlisted", lambda root: written(root / ONE, encode(picture(1), "JPEG"))),
    "a PNG called JPEG": ("wrong_extension", lambda root: written(root / f"{ONE}.jpg", encode(picture(1), "PNG"))),
    "a strip": ("extreme_aspect", lambda root: saved(root / f"{ONE}.png", picture(1, 400, 20))),
    "a speck": ("tiny", lambda root: saved(root / f"{ONE}.png", picture(1, 12, 10))),
    "one grey": ("blank", lambda root: saved(root / f"{ONE}.png", Image.new("RGB", (64, 64), (90, 90, 90)))),
    "a copy": ("duplicate", copied("train/red/001.png", "train/red/copy.png")),
    "a copy in another class": ("conflict", copied("train/red/001.png", "train/blue/copy.png")),
    "a copy in another split": ("leak", copied("train/red/001.png", "val/red/copy.png")),
    "a smaller copy": ("near_duplicate", saved_anew("train")),
    "a smaller copy in another split": ("near_leak", saved_anew("val")),
    "ten times as many": ("imbalance", many),
    "nine of a class": ("few_images", a_small_class),
    "an animation": (
        "animated",
        lambda root: saved(root / f"{ONE}.webp", picture(1), save_all=True, append_images=[picture(2)]),
    ),
    "CMYK": ("cmyk", lambda root: saved(root / f"{ONE}.jpg", picture(1).convert("CMYK"))),
    "16 bits": (
        "sixteen_bit",
        lambda root: saved(root / f"{ONE}.png", Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)),
    ),
    "transparency": ("transparent", lambda root: saved(root / f"{ONE}.png", picture(1).convert("RGBA"))),
    "a phone held upright": ("turned", lambda root: saved(root / f"{ONE}.jpg", picture(1), exif=b"Exif\0\0" + TURNED)),
    "notes": ("other_file", lambda root: written(root / "train/red/notes.txt", b"BMW in the third picture")),
}


def test_a_sound_folder_has_no_findings(photos: PhotoFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert [] == check(photos(SOUND), 0)
    assert "nothing is wrong with it" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "plant"), PLANTS.values(), ids=PLANTS)
def test_what_is_planted_is_found_where_it_is_and_nothing_else(
    kind: str, plant: Callable[[Path], Path | str], photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(SOUND)
    where = str(plant(root))
    found = check(root, 0 if KINDS[kind].level == "note" else 1)
    told = capsys.readouterr().out

    assert [(KINDS[kind].level, kind, where)] == [row[:3] for row in found]
    assert all(word in told for word in (f"{kind} (1)", where))


LAYOUTS = {
    "misplaced_split": {"train/a": 12, "train/b": 12, "valid/a": 1},
    "no_train": {"val/a": 12, "val/b": 12},
    "no_pictures": {"a": 0, "b": 0},
    "one_class": {"a": 12},
    "class_mismatch": {"train/a": 12, "train/b": 12, "val/a": 12},
    "empty_class": {"a": 12, "b": 0},
}


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS.items(), ids=LAYOUTS)
def test_a_folder_that_cannot_be_learnt_from_is_told_so_and_still_looked_at(
    kind: str, layout: dict[str, int], photos: PhotoFolder
) -> None:
    root = photos(layout)
    (root / "notes.txt").write_text("later")

    assert [kind, "other_file"] == [row[1] for row in check(root, 1) if row[1] != "stray"]


def test_every_kind_is_planted_by_a_test() -> None:
    assert KINDS.keys() == {kind for kind, _ in PLANTS.values()} | LAYOUTS.keys() | {"class_name"}


def test_names_that_are_no_utf_8_are_told_and_listed_as_they_are(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, name = photos(SOUND), os.fsdecode(b"caf\xe9")
    (root / f"train/red/{name}.jpg").write_bytes(b"not a picture")
    (root / f"train/{name}.txt").write_text("a note")
    rows = {row[1]: row[2] for row in check(root, 1)}
    order = ["--data", str(root), *QUICK, "--epochs", "1", "--run", str(tmp_path / "run"), "--out", "out.pt"]
    capsys.readouterr()

    assert str(root / f"train/red/{name}.jpg") == rows["unsupported"]
    assert str(root / f"train/{name}.txt") == rows["other_file"]
    assert 0 == main([*order, "--skip-bad", "--out", str(tmp_path / "model.pt")])
    assert b"caf\xe9.jpg" in (tmp_path / "run" / "quarantine.csv").read_bytes()
    (root / "train/red").rename(root / f"train/{name}")
    (root / "val/red").rename(root / f"val/{name}")
    assert 2 == main([*order, "--run", str(tmp_path / "other")])
    assert "has a class folder whose name is no UTF-8, 'caf\\udce9'; rename it" in capsys.readouterr().err


def test_a_colour_profile_that_breaks_off_harms_nothing(photos: PhotoFolder) -> None:
    root = photos(SOUND)
    body = encode(picture(1), "JPEG")
    broken = b"\xff\xe2" + (2 + 13).to_bytes(2, "big") + b"ICC_PROFILE\0\x01"
    (root / "train/red/900.jpg").write_bytes(body[:2] + broken + body[2:])

    assert [] == check(root, 0)


def test_many_findings_of_a_kind_are_cut_on_the_terminal_and_all_in_the_list(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(SOUND)
    for index in range(30):
        (root / "train/red" / f"bad{index:02}.jpg").write_bytes(b"")

    assert 30 == len(check(root, 1))
    told = capsys.readouterr().out
    assert "unusable empty_file (30): a file of no bytes; copy it anew or remove it" in told
    assert 10 == told.count("bad")
    assert "and 20 more: --list FILE tells all" in told


def test_photos_have_no_defects(test_data: Path, tmp_path: Path) -> None:
    assert main(["check", str(test_data / "hymenoptera"), "--list", str(tmp_path / "found.csv")]) == 0


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def train(root: Path, *more: str) -> int:
    """Train for an epoch, with everything beside `root`."""
    places = ["--out", str(root.parent / "m.pt"), "--run", str(root.parent / "run")]
    return main(["--data", str(root), *places, *QUICK, "--epochs", "1", *more])


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["in memory", "decoded anew"])
def test_unreadable_pictures_are_left_out_on_request_and_listed(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr("training.pixels.MEMORY", memory)
    root = photos(SOUND)
    for place in ("train/red/000a.jpg", "train/blue/zz.jpg", "val/red/003a.png"):
        (root / place).write_bytes(noise(1, (20, 20))[:90])

    assert train(root, "--skip-bad") == 0
    assert "24 train, 24 val" in (told := capsys.readouterr().out)
    assert "skipped   3 unreadable pictures" in told
    with (root.parent / "run" / "quarantine.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert ["file", "problem"] == rows[0]
    assert {"000a.jpg", "zz.jpg", "003a.png"} == {Path(row[0]).name for row in rows[1:]}


def test_a_class_of_unreadable_pictures_is_not_skipped_away(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(SOUND)
    for path in (root / "val/red").iterdir():
        path.write_bytes(b"")

    assert train(root, "--skip-bad") == 2
    assert "--skip-bad leaves no picture of red in val" in capsys.readouterr().err


def test_training_warns_of_files_that_are_in_several_splits(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(SOUND)
    shutil.copy(root / "train/red/001.png", root / "val/red/copy.png")

    assert train(root) == 0
    assert "warning   1 files are both in train and in val" in capsys.readouterr().out
