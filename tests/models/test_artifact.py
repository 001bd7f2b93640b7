"""The artifact: what it holds, and that nothing but what was saved is ever loaded."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import archive, artifact, optimisation
from models import manifest as manifests
from models.architectures import ARCHITECTURES, classifier
from models.classifier import Classifier
from models.errors import ArtifactError
from models.goldens import Goldens
from tests import artifacts

READER = """
import sys, warnings; warnings.simplefilter("ignore")
import torch
module = torch.jit.load(sys.argv[1])
image = torch.arange(3 * 50 * 40).reshape(3, 50, 40).remainder(256).to(torch.uint8)
print(module(module.preprocess(image)[None]).shape, sorted(name for name in sys.modules if name.startswith("models")))
"""


def rewritten(path: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy with changed members, sealed again as an attacker or a careless tool would."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    target.write_bytes(archive.seal(buffer.getvalue()))
    return target


def change_manifest(**fields: object) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        (name,) = (name for name in members if name.endswith("/extra/manifest.json"))
        members[name] = json.dumps(json.loads(members[name]) | fields).encode()

    return change


def test_it_is_usable_with_nothing_but_torch(saved: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", READER, str(saved)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert "torch.Size([1, 10]) []" == printed.strip()


def test_it_ends_in_the_sha256_of_every_byte_before(saved: Path) -> None:
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as file:
        comment = file.comment

    assert content.endswith(comment)
    assert hashlib.sha256(content[: -len(comment)]).hexdigest() == comment.decode()


def test_it_holds_manifest_goldens_weights_and_card(saved: Path) -> None:
    extra = archive.read(saved, "extra")

    assert {"manifest.json", "goldens.pt", "weights.pt", "model_card.md"} == extra.keys()
    assert extra["model_card.md"].decode().startswith("# test\n")


def test_the_manifest_says_what_was_saved_and_null_where_nothing_is_known(saved: Path) -> None:
    manifest = manifests.read(saved)

    assert ("test", artifacts.CLASSES, 32, 1.0) == (manifest.name, manifest.classes, manifest.input_size, manifest.crop)
    assert manifest.version == manifest.digest[:12]
    assert {"torch", "torchvision"} == manifest.torch.keys()
    document = json.loads(archive.read(saved, "extra")["manifest.json"])
    unknown = ("recipe", "data_fingerprint", "metrics", "unknown_threshold", "validation_statistics")
    assert [None] * 5 == [document[name] for name in unknown]


def test_it_names_no_path_of_the_machine_it_was_made_on(saved: Path) -> None:
    content = saved.read_bytes()

    assert str(Path.cwd()).encode() not in content
    assert sys.prefix.encode() not in content


@pytest.mark.slow
def test_equal_models_have_equal_digests_and_other_weights_another(tmp_path: Path) -> None:
    first, again = artifacts.write(tmp_path / "a.pt"), artifacts.write(tmp_path / "b.pt")
    torch.manual_seed(1)
    other = artifacts.write(tmp_path / "c.pt", model=classifier("simple_cnn", 10))

    assert first.digest == again.digest != other.digest


def test_the_manifest_and_weights_rebuild_the_model_without_torchscript(saved: Path) -> None:
    manifest, loaded = manifests.read(saved), artifact.load(saved)
    weights = torch.load(io.BytesIO(archive.read(saved, "extra")["weights.pt"]), weights_only=True)
    entry = ARCHITECTURES[manifest.architecture.name]
    network = entry.build(**manifest.architecture.arguments)
    rebuilt = Classifier(network, input_size=manifest.input_size, crop=manifest.crop, mean=entry.mean, std=entry.std)
    rebuilt.load_state_dict(weights)

    torch.testing.assert_close(loaded.goldens.probabilities, rebuilt.eval()(loaded.goldens.pixels))


def test_goldens_are_pictures_of_several_sizes_in_png_and_jpeg_with_a_margin(saved: Path) -> None:
    goldens = artifact.load(saved).goldens
    best, second = goldens.probabilities.topk(2).values.T

    assert {b"\x89PNG", b"\xff\xd8\xff\xe0"} == {body[:4] for body in goldens.encoded}
    assert len(goldens.encoded) == len(goldens.pixels) == len(goldens.probabilities) >= 6
    assert bool(((best - second) >= 0.2).all())


def test_its_bytes_are_verified_without_importing_torch(saved: Path) -> None:
    script = "import sys; from pathlib import Path; from models import manifest; manifest.read(Path(sys.argv[1]));"
    script += "print('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=True)

    assert "False" == printed.stdout.strip()


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "no such file"), (b"", "foreign"), (b"<html></html>", "foreign")],
    ids=["missing", "empty", "html"],
)
def test_what_is_no_artifact_is_refused(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ArtifactError, match=found):
        artifact.load(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Is a directory"):
        artifact.load(tmp_path)


def test_a_plain_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "model.pt")

    with pytest.raises(ArtifactError, match="re-saved"):
        artifact.load(tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_artifact_is_refused(saved: Path, tmp_path: Path, kept: float) -> None:
    content = saved.read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: int(len(content) * kept)])

    with pytest.raises(ArtifactError):
        artifact.load(tmp_path / "model.pt")


@pytest.mark.slow
def test_1000_flipped_bytes_are_all_refused(saved: Path, tmp_path: Path) -> None:
    content, path = saved.read_bytes(), tmp_path / "model.pt"
    path.write_bytes(content)
    choose = random.Random(0)
    # Anywhere, which is mostly weights, and in zip's directory, on which parsers stumble in many ways.
    directory = int.from_bytes(content[-70:-66], "little")
    places = choose.sample(range(directory), 800) + choose.sample(range(directory, len(content)), 200)
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for place in places:
            os.pwrite(file.fileno(), bytes([content[place] ^ choose.randrange(1, 256)]), place)
            try:
                manifests.read(path)
                accepted.append(place)
            except ArtifactError:
                pass
            os.pwrite(file.fileno(), content[place : place + 1], place)

    assert [] == accepted
    assert manifests.read(path).name == "test"


def named(members: dict[str, bytes], ending: str) -> str:
    """The member whose name ends so."""
    return next(name for name in members if name.endswith(ending))


def with_bomb(members: dict[str, bytes]) -> None:
    """A pickle that runs a command where it is loaded."""
    members[named(members, "/data.pkl")] = b"cposix\nsystem\n(S'touch bomb-went-off'\ntR."


def with_nan(members: dict[str, bytes]) -> None:
    """Goldens that nothing can answer."""
    name = named(members, "/goldens.pt")
    stored = Goldens.from_bytes(members[name])
    members[name] = Goldens(stored.encoded, stored.pixels, stored.probabilities * float("nan")).to_bytes()


def with_other_goldens(members: dict[str, bytes]) -> None:
    """Goldens of another picture size."""
    name = named(members, "/goldens.pt")
    stored = Goldens.from_bytes(members[name])
    members[name] = Goldens(stored.encoded, stored.pixels[..., :16, :16], stored.probabilities).to_bytes()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (with_bomb, "expected a TorchScript module with goldens, found"),
        (with_nan, "its goldens' answers on cpu in fp32, found"),
        (with_other_goldens, "its goldens' answers on cpu in fp32, found"),
        (change_manifest(input_size=64), "expected a module in eval mode with the manifest's input size"),
        (change_manifest(classes=["a", "b", "c"]), "expected 10 class names, one an output, found 3"),
        (lambda members: members.pop(named(members, "/manifest.json")), "expected a manifest.json inside, found none"),
        (lambda members: members.pop(named(members, "/goldens.pt")), "expected a TorchScript module with goldens"),
        (lambda members: members.pop(named(members, "/data.pkl")), "expected a TorchScript module with goldens"),
        (lambda members: members.pop(named(members, ".py")), "expected a TorchScript module with goldens"),
    ],
)
def test_a_file_that_was_changed_and_sealed_again_is_refused_in_one_line(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, bytes]], None], found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(saved, tmp_path / "model.pt", change)
    with pytest.raises(ArtifactError) as refused:
        optimisation.prepare(artifact.load(path), torch.device("cpu"))

    assert str(refused.value).startswith(f"{path}: ")
    assert found in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"classes": ["a", "b"]}, "class names"),
        ({"classes": ["a"] * 10}, "must be unique"),
        ({"schema_version": 2}, "schema_version"),
        ({"digest": "0" * 64}, "digest 000000000000"),
        ({"crop": 0.5}, "crop"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_manifest_that_does_not_fit_the_model_is_refused(
    saved: Path, tmp_path: Path, fields: dict[str, object], found: str
) -> None:
    path = rewritten(saved, tmp_path / "model.pt", change_manifest(**fields))

    with pytest.raises(ArtifactError, match=found):
        artifact.load(path)


def test_swapped_weights_are_refused_although_the_file_is_sealed(saved: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        name = max((name for name in members if "/data/" in name), key=lambda name: len(members[name]))
        members[name] = members[name][:-4] + b"\0\0\0\0"

    with pytest.raises(ArtifactError, match="weights and code of digest"):
        artifact.load(rewritten(saved, tmp_path / "model.pt", change))


def test_a_failed_proof_leaves_the_old_file_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"the old one")
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    validation = artifact.Validation([(pixels, torch.tensor([0, 0, 0, 0]))], correct=2)

    with pytest.raises(ArtifactError, match="2 validation images right"):
        artifacts.save(path, validation=validation)
    assert [path] == list(tmp_path.iterdir())
    assert b"the old one" == path.read_bytes()


class Moody(nn.Module):
    """Answers differently once scripted."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1, keepdim=True)
        scale = 50.0 if torch.jit.is_scripting() else 1.0  # type: ignore[attr-defined]
        return torch.cat([mean, -mean], 1) * scale


def test_a_model_that_answers_differently_once_scripted_is_never_published(tmp_path: Path) -> None:
    model = Classifier(Moody(), input_size=32, crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    with pytest.raises(ArtifactError, match="equal to the eager model's"):
        artifacts.save(tmp_path / "model.pt", "simple_cnn", model, classes=("a", "b"))
    assert [] == list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_digest_does_not_depend_on_the_process(tmp_path: Path) -> None:
    script = "from pathlib import Path; from tests import artifacts; import sys\n"
    script += "print(artifacts.write(Path(sys.argv[1]), 'compact_cnn').digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "model.pt")],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert 1 == len(digests)


@pytest.mark.slow
def test_saving_leaves_the_classifier_as_it_was(tmp_path: Path) -> None:
    model = artifacts.sure(classifier("simple_cnn", 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    artifacts.save(tmp_path / "model.pt", model=model)

    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
