from pathlib import Path

import torch
from PIL import Image

from models import archive
from models import manifest as manifests
from models.manifest import Histogram, Statistics
from models.statistics import BRIGHTNESS, CONFIDENCE, SIZE, binned
from tests.pictures import noise
from tests.training.conftest import Run
from training.data import Images
from training.pixels import InMemory
from training.statistics import sides, statistics


def test_every_image_of_the_split_is_counted_once_in_each_of_the_statistics() -> None:
    levels = torch.tensor([10, 100, 200], dtype=torch.uint8)
    pixels = levels[:, None, None, None].expand(3, 3, 32, 32)
    labels = torch.zeros(3, dtype=torch.int64)
    predicted, confidence = torch.tensor([0, 3, 3]), torch.tensor([0.95, 0.5, 0.999])
    found = statistics(predicted, confidence, 4, InMemory(pixels, labels), Images(pixels, labels))

    assert (1, 0, 0, 2) == found.classes
    assert binned([0.95, 0.5, 0.999], CONFIDENCE) == found.confidence.counts
    assert binned([10, 100, 200], BRIGHTNESS) == found.brightness.counts
    assert binned([32, 32, 32], SIZE) == found.size.counts


def test_a_files_size_is_the_one_in_its_header_however_it_is_decoded(tmp_path: Path) -> None:
    large, small = tmp_path / "large.jpg", tmp_path / "small.png"
    large.write_bytes(noise(1, (1600, 900), "JPEG"))
    Image.new("L", (30, 120)).save(small)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    images = Images([large, tmp_path / "broken.jpg", small], torch.zeros(3, dtype=torch.int64))

    assert [1200, 60] == list(sides(images))


def test_a_trained_artifact_knows_what_its_validation_images_were_like(trained: Run) -> None:
    manifest = manifests.read(trained.artifact)
    found = manifest.validation_statistics
    assert found is not None
    paths = sorted((trained.photos / "val").glob("*/*"))

    assert [30] * 4 == [sum(counts) for counts in (found.classes, *(part.counts for part in parts(found)))]
    assert binned(sides(Images(paths, torch.zeros(30, dtype=torch.int64))), SIZE) == found.size.counts
    assert "30 validation images" in archive.read(trained.artifact, "extra")["model_card.md"].decode()


def parts(found: Statistics) -> tuple[Histogram, Histogram, Histogram]:
    """Those over ranges."""
    return found.confidence, found.brightness, found.size
