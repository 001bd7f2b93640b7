import io
import json
from pathlib import Path

import pytest
import torch

from models import architectures, archive, artifact
from models import manifest as manifests
from models.goldens import Goldens
from tests.training.conftest import Run
from training.__main__ import main

KINDS = ["cat", "dog", "owl"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a SimpleCNN for three classes."""
    torch.manual_seed(3)
    path = tmp_path / "weights.pth"
    torch.save(architectures.classifier("simple_cnn", 3).network.state_dict(), path)
    return path


def export(weights: Path, classes: str, *more: str, suffix: str = ".txt", arch: str = "simple_cnn") -> int:
    """Run the command beside the weights; its exit code."""
    names = weights.with_name("classes" + suffix)
    names.write_text(classes)
    flags = {"--arch": arch, "--weights": weights, "--classes": names, "--out": weights.with_name("out.pt")}
    return main(["export", *(str(word) for flag in flags.items() for word in flag), *more])


@pytest.mark.parametrize(("classes", "suffix"), [("cat\ndog\n\nowl\n", ".txt"), (json.dumps(KINDS), ".json")])
def test_existing_weights_become_an_artifact_that_answers_as_they_do(weights: Path, classes: str, suffix: str) -> None:
    assert export(weights, classes, "--name", "pets", "--version", "7", suffix=suffix) == 0

    loaded = artifact.load(weights.with_name("out.pt"))
    classifier = architectures.classifier("simple_cnn", 3).eval()
    classifier.network.load_state_dict(torch.load(weights, weights_only=True))
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(classifier(pixels), loaded.module(pixels), atol=1e-6)
    manifest = loaded.manifest
    assert ("pets", "7", tuple(KINDS), 1.0) == (manifest.name, manifest.version, manifest.classes, manifest.temperature)
    assert (None, None) == (manifest.recipe, manifest.metrics)


def test_a_runs_checkpoint_can_be_exported(trained: Run, tmp_path: Path) -> None:
    names, out = tmp_path / "classes.txt", tmp_path / "out.pt"
    names.write_text("blue\ngreen\nred")
    checkpoint = trained.folder / "checkpoints" / "best.pt"
    flags = ["--arch", "compact_cnn", "--weights", str(checkpoint), "--classes", str(names), "--input-size", "16"]

    assert main(["export", *flags, "--out", str(out)]) == 0
    assert manifests.read(out).classes == manifests.read(trained.artifact).classes


def test_manifest_and_weights_make_the_model_anew_without_torchscript(trained: Run, tmp_path: Path) -> None:
    manifest, extra = manifests.read(trained.artifact), archive.read(trained.artifact, "extra")
    assert manifest.architecture is not None
    made = architectures.classifier(
        manifest.architecture.name, input_size=manifest.input_size, **manifest.architecture.arguments
    ).eval()
    made.load_state_dict(torch.load(io.BytesIO(extra["weights.pt"]), weights_only=True))
    goldens = Goldens.from_bytes(extra["goldens.pt"])
    batches = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(made, (goldens.pixels,), dynamic_shapes=batches), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()

    assert manifest.crop == made.crop
    for n in (1, 3, len(goldens.pixels)):
        for model in (made, loaded):
            torch.testing.assert_close(goldens.probabilities[:n], model(goldens.pixels[:n]), atol=1e-4, rtol=0)


REFUSED = {
    "a class twice": ("crane\ndog\ncrane", "simple_cnn", "names must be unique; crane"),
    "one class": ("cat", "simple_cnn", "1 names; a classifier needs two or more"),
    "too few classes": ("cat\ndog", "simple_cnn", "is for 3 classes, "),
    "another architecture": ("cat\ndog\nowl", "compact_cnn", "do not fit --arch compact_cnn"),
}


@pytest.mark.parametrize(("classes", "arch", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    weights: Path, classes: str, arch: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(weights, classes, arch=arch) == 2
    error = capsys.readouterr().err
    assert words in error
    assert 1 == error.count("\n")
    assert not weights.with_name("out.pt").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 no zip", b"airplane\n", b"hen\n"])
def test_a_file_that_holds_no_weights_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    assert export(path, "cat\ndog") == 2
    assert f"--weights {path}: no " in capsys.readouterr().err


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_a_file_that_holds_no_state_dict_is_refused(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)

    assert export(path, "cat\ndog") == 2
    assert "no state dict" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "suffix"), [("{", ".json"), ('{"a": 1}', ".json"), ("[1, 2]", ".json")])
def test_a_class_file_that_is_no_list_of_names_is_refused(
    weights: Path, text: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(weights, text, suffix=suffix) == 2
    assert "not a JSON list" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_refused(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({name: value * float("nan") for name, value in state.items()}, weights)

    assert export(weights, "cat\ndog\nowl") == 2
    assert "expected finite probabilities, found none" in capsys.readouterr().err
    assert not weights.with_name("out.pt").exists()
