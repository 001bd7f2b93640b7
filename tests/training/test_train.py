import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from models import artifact
from models import manifest as manifests
from tests.training.conftest import COLOURS, QUICK, PhotoFolder, Run
from training import report
from training.__main__ import main
from training.measurement import wilson

PICTURES = ("curves", "confusion_matrix", "reliability", "slices", "mistakes")


def test_a_run_leaves_artifact_checkpoint_and_reports(trained: Run) -> None:
    files = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()}

    assert {
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "epochs.csv",
        "reports/index.html",
        "reports/metrics.json",
        "reports/per_class.csv",
        *(f"reports/{name}.png" for name in PICTURES),
    } == files
    assert [trained.artifact] == list(trained.artifact.parent.iterdir())


def test_the_manifest_tells_recipe_data_and_figures(trained: Run) -> None:
    manifest = manifests.read(trained.artifact)
    assert manifest.metrics is not None
    assert manifest.metrics.test is not None
    assert manifest.recipe is not None

    assert ("photos", tuple(COLOURS), 16) == (manifest.name, manifest.classes, manifest.input_size)
    assert (4, "photos") == (manifest.recipe["epochs"], manifest.recipe["data"])
    assert trained.metrics["data"]["fingerprint"] == manifest.data_fingerprint
    correct = trained.metrics["accuracy"]["test"]["correct"]
    assert (correct / 36, 36, wilson(correct, 36)) == tuple(manifest.metrics.test.model_dump().values())
    assert trained.metrics["calibration"]["temperature"] == pytest.approx(manifest.temperature)
    assert trained.metrics["calibration"]["error_after"] == manifest.metrics.calibration_error


def test_metrics_tell_every_epoch_and_agree_with_each_other(trained: Run) -> None:
    metrics = trained.metrics
    best = metrics["epochs"][metrics["best_epoch"] - 1]

    assert [1, 2, 3, 4] == [epoch["number"] for epoch in metrics["epochs"]]
    assert best["validation"][1] == max(epoch["validation"][1] for epoch in metrics["epochs"])
    assert best["validation"][1] == pytest.approx(metrics["accuracy"]["validation"]["value"])
    assert "test" == metrics["measured_on"]
    confusion = torch.tensor(metrics["confusion"])
    assert metrics["accuracy"]["test"]["correct"] == int(confusion.trace())
    assert [12, 12, 12] == confusion.sum(1).tolist() == [kind["n"] for kind in metrics["per_class"].values()]
    calibration = metrics["calibration"]
    assert calibration["temperature"] != 1


def test_the_model_has_learnt_the_colours(trained: Run) -> None:
    assert trained.metrics["accuracy"]["test"]["value"] > 0.8


def test_the_output_ends_in_the_artifact_and_the_next_command(trained: Run) -> None:
    assert f"artifact  {trained.artifact}" in trained.output
    assert trained.output.rstrip().endswith(f"python -m service --model {trained.artifact}")


def test_on_a_pipe_there_is_one_plain_line_an_epoch(trained: Run) -> None:
    assert 4 == sum(line.startswith("epoch") for line in trained.output.splitlines())
    assert "\r" not in trained.output


def test_the_checkpoint_holds_plain_weights_of_the_best_epoch(trained: Run) -> None:
    content = torch.load(trained.folder / "checkpoints" / "best.pt", weights_only=True)
    state = artifact.load(trained.artifact).module.state_dict()

    assert trained.metrics["best_epoch"] == content["epoch"]
    assert all(torch.equal(value, state[f"network.{name}"]) for name, value in content["network"].items())


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_pictures(trained: Run, name: str) -> None:
    with Image.open(trained.folder / "reports" / f"{name}.png") as image:
        image.load()
        assert min(image.size) > 300


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references, self.words = list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, _: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_holds_all_pictures_and_figures_and_needs_nothing_else(trained: Run) -> None:
    page = Page((trained.folder / "reports" / "index.html").read_text(encoding="utf-8"))
    figures = trained.metrics["accuracy"]["test"]
    text = " ".join(page.words)

    assert len(PICTURES) == len(page.references)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert f"{figures['value']:.2%}" in page.words
    assert "{:.2%} to {:.2%}".format(*figures["interval"]) in page.words
    assert all(word in text for word in (*COLOURS, trained.metrics["artifact"]["digest"], "cosine", "batch_size"))


def test_slices_hold_every_measured_image_once(trained: Run) -> None:
    slices, test = trained.metrics["slices"], trained.metrics["accuracy"]["test"]

    assert {"brightness", "contrast"} == slices.keys()
    for parts in slices.values():
        assert test["n"] == sum(part["n"] for part in parts.values())
        assert test["correct"] == round(sum(part["n"] * part["value"] for part in parts.values()))


@pytest.mark.slow
def test_runs_are_compared_with_an_interval_and_by_what_differs(
    trained: Run, photos: PhotoFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "m.pt"), "--run", str(tmp_path / "other")]
    assert main(["--data", str(trained.photos), *places, *QUICK, "--epochs", "1", "--lr", "0.00001"]) == 0
    capsys.readouterr()
    assert main(["compare", str(trained.folder), str(tmp_path / "other")]) == 0
    told = capsys.readouterr().out

    assert "difference -" in told
    assert "is more than chance" in told
    assert [["epochs", "4", "1"]] == [line.split() for line in told.splitlines() if line.startswith("epochs ")]
    assert not any(line.startswith(("batch_size", "seed")) for line in told.splitlines())


def test_a_folder_without_a_run_is_not_compared(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(trained.folder), str(tmp_path)]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_several_seeds_give_mean_and_spread_and_the_best_on_validation(
    photos: PhotoFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "m.pt"), "--run", str(tmp_path / "run")]
    assert main(["--data", str(photos()), *places, *QUICK, "--epochs", "2", "--seed", "5", "--seeds", "3"]) == 0
    told = capsys.readouterr().out
    runs = {seed: json.loads((tmp_path / f"run/seed-{seed}/reports/metrics.json").read_text()) for seed in (5, 6, 7)}
    accuracies = [run["accuracy"]["validation"]["value"] for run in runs.values()]

    assert 3 == len({run["artifact"]["digest"] for run in runs.values()})
    assert f"{'validation':21} {sum(accuracies) / 3:.2%} on average, standard deviation" in told
    assert "seconds, compiled" not in told
    best = [
        run["artifact"]["digest"] for run in runs.values() if run["accuracy"]["validation"]["value"] == max(accuracies)
    ]
    assert manifests.read(tmp_path / "m.pt").digest in best


def test_evaluate_gives_the_trainers_figures_to_the_image(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for split, told in (("test", "test"), ("val", "validation")):
        arguments = [
            "evaluate",
            "--model",
            trained.artifact,
            "--data",
            trained.photos,
            "--split",
            split,
            "--device",
            "cpu",
        ]
        assert main(list(map(str, arguments))) == 0
        figures = trained.metrics["accuracy"][told]
        assert f"{figures['value']:.2%} of {figures['n']} images" in capsys.readouterr().out


def test_evaluate_takes_all_images_of_a_folder_without_splits_that_the_model_has_not_seen(
    trained: Run, photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--model", str(trained.artifact), "--data", str(photos()), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "on photos, all images" in output
    assert "of 36 images" in output


def test_evaluate_refuses_other_classes_and_splits(
    trained: Run, photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["evaluate", "--model", str(trained.artifact), "--data"]

    assert main([*common, str(photos({"blue": 2, "yellow": 2, "red": 2}))]) == 2
    assert "lacks green (1) and adds yellow (1)" in capsys.readouterr().err
    assert main([*common, str(trained.photos), "--split", "dev"]) == 2
    assert "photos has train, val, test" in capsys.readouterr().err


def test_without_a_test_split_every_report_says_that_figures_are_on_validation_images(
    photos: PhotoFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos()
    out, run = root.parent / "m.pt", root.parent / "run"

    assert main(["--data", str(root), "--epochs", "1", "--out", str(out), "--run", str(run), *QUICK]) == 0
    output = capsys.readouterr().out
    assert "no test split, so figures are on validation images" in output
    told = [line for line in output.splitlines() if line.startswith(("temperature", "unknown below"))]
    assert 2 == len(told)
    assert all("validation images" in line for line in told)
    metrics = json.loads((run / "reports" / "metrics.json").read_text())
    assert ("validation", ["validation"]) == (metrics["measured_on"], list(metrics["accuracy"]))
    # The split that was drawn by seed is drawn again.
    assert main(["evaluate", "--model", str(out), "--data", str(root), "--device", "cpu"]) == 0
    figures = metrics["accuracy"]["validation"]
    assert f"{figures['value']:.2%} of {figures['n']} images" in capsys.readouterr().out


def test_with_val_0_all_images_are_trained_on_and_nothing_is_calibrated(photos: PhotoFolder) -> None:
    root = photos()
    out, run = root.parent / "m.pt", root.parent / "run"
    arguments = ["--data", str(root), "--epochs", "2", "--val", "0", "--out", str(out), "--run", str(run), *QUICK]

    assert main(arguments) == 0
    manifest = manifests.read(out)
    assert manifest.metrics is not None
    assert (1.0, None, None) == (manifest.temperature, manifest.metrics.validation, manifest.metrics.calibration_error)
    metrics = json.loads((run / "reports" / "metrics.json").read_text())
    assert (2, None, {"train": 36}) == (metrics["best_epoch"], metrics["measured_on"], metrics["data"]["images"])


def test_a_run_that_diverges_publishes_nothing(photos: PhotoFolder, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos()
    wild = ["--optimizer", "sgd", "--lr", "1e30", "--schedule", "constant"]

    out, run = root.parent / "m.pt", root.parent / "run"
    assert main(["--data", str(root), "--out", str(out), "--run", str(run), *QUICK, *wild]) == 1
    assert "try a lower --lr" in capsys.readouterr().err
    assert [root] == list(root.parent.iterdir())


def test_seconds_are_told_without_compiling_too() -> None:
    runs = [
        {
            "accuracy": {"test": {"value": 0.9}},
            "accuracy_6_views": {},
            "seconds": sum(seconds),
            "recipe": {"compile": True},
            "epochs": [{"seconds": taken} for taken in seconds],
        }
        for seconds in ([61.0, 1.0, 2.0], [1.5, 1.5, 1.5])
    ]
    told = report.spread(runs)

    assert "seconds               34.2 on average, standard deviation 42.1, 4.5 to 64.0" in told
    assert "seconds, compiled     4.5 on average, standard deviation 0.0, 4.5 to 4.5" in told
    assert 7.0 == report.settled([7.0])
