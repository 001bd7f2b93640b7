"""The circle: a weak model serves, people say what its images are, a version that learnt from these takes over."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures import encode
from tests.running import Service, predictions, serving
from training import shapes10

FEW, TOLD, HELD_OUT = 250, 1000, 500  # pictures that it begins with, that people judge, that it is measured on


def train(data: Path, out: Path, *flags: str) -> None:
    """`python -m training`, with its run beside the artifact."""
    command = [sys.executable, "-m", "training", "--data", str(data), "--recipe", "demo", "--workers", "0", *flags]
    command += ["--name", "circle", "--out", str(out), "--run", str(out.with_suffix(""))]
    finish(command)


def finish(command: list[str], **variables: str) -> None:
    """Run a command that succeeds."""
    env = os.environ | variables
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert finished.returncode == 0, finished.stderr


def kept_as(folder: Path) -> dict[str, str]:
    """The classes of the pictures that have one, by the pictures' ids."""
    return {path.stem: path.parent.name for path in folder.glob("[!.]*/picture-*.png")}


def answered(service: Service, bodies: Sequence[bytes]) -> list[str]:
    return [predictions(reply)[0]["class"] for reply in service.post_together(bodies)]


def share(found: Sequence[str], names: Sequence[str]) -> float:
    """How many are right."""
    return sum(a == b for a, b in zip(found, names, strict=True)) / len(names)


@pytest.mark.slow
def test_a_model_that_learns_from_feedback_is_right_more_often(tmp_path: Path) -> None:
    drawn = {split: shapes10.render(split) for split in ("train", "test")}
    bodies = {name: [encode(Image.fromarray(image.transpose(1, 2, 0))) for image in drawn[name][0]] for name in drawn}
    names = {name: [shapes10.CLASSES[label] for label in drawn[name][1]] for name in drawn}
    test = bodies["test"][:HELD_OUT], names["test"][:HELD_OUT]
    for number in range(FEW):
        place = tmp_path / "few" / names["train"][number]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(bodies["train"][number])
    weak, better, kept = tmp_path / "weak.pt", tmp_path / "better.pt", tmp_path / "kept"
    train(tmp_path / "few", weak, "--epochs", "5", "--batch-size", "16")
    flags = "--keep-images", str(kept), "--http-processes", "2"
    with serving(weak, *flags, DARKROOM_ADMIN_KEYS="key") as service:
        before = share(answered(service, test[0]), test[1])

        def correct(number: int) -> int:
            """Send a picture, and say what it is."""
            service.post(bodies["train"][number], X_Request_ID=f"picture-{number}")
            said = {"request_id": f"picture-{number}", "class": names["train"][number]}
            return service.post(json.dumps(said).encode(), "/feedback", Content_Type="application/json").status_code

        with ThreadPoolExecutor(8) as pool:
            assert {200} == set(pool.map(correct, range(FEW, FEW + TOLD)))
        right, wrong = (service.sample("darkroom_feedback_total", outcome=what) for what in ("right", "wrong"))
        expected = {f"picture-{number}": names["train"][number] for number in range(FEW, FEW + TOLD)}
        while kept_as(kept) != expected:  # they are written beside the replies
            pass
        train(kept, better, "--weights", str(tmp_path / "weak" / "checkpoints" / "best.pt"))
        order = [sys.executable, "-m", "service", "models", "load", "better", "--promote", "--url", service.url]
        finish(order, DARKROOM_ADMIN_KEYS="key")
        after = share(answered(service, test[0]), test[1])
    live = right / (right + wrong)
    print(f"\nheld-out accuracy {before:.1%}, by feedback {live:.1%}; after training on {TOLD} corrections {after:.1%}")

    assert TOLD == right + wrong
    assert live == pytest.approx(before, abs=0.06)
    assert after > before + 0.2
