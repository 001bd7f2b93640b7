"""Where `--data` leads: the embedded shapes10, CIFAR-10, or a folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from models import archive
from training import cifar10, data, folder, shapes10
from training.command_line import Data
from training.data import Images, Prepared, Source
from training.progress import bar

SAMPLE = "star"  # the class of the sample picture, if the model gets one right


def load(order: Data) -> Source:
    """The data set as it comes.

    Raises:
        TrainingError: see `cifar10.load` and `folder.load`.
    """
    if order.data == "shapes10":
        drawn = {split: map(torch.from_numpy, shapes10.render(split)) for split in shapes10.SPLITS}
        return Source("shapes10", shapes10.CLASSES, {split: Images(*arrays) for split, arrays in drawn.items()})
    if order.data == "cifar10":
        return cifar10.load(order.data_dir.expanduser(), order.data_url)
    return folder.load(Path(order.data).expanduser())


def prepare(source: Source, input_size: int, crop: float, workers: int | None, run: Path) -> Prepared:
    """Decode every picture once, with progress.

    Raises:
        TrainingError: unreadable pictures; of many, `run` gets the list.
    """
    with bar(sum(map(len, source.splits.values())), "checking") as progress:
        prepared, problems = data.prepare(source, input_size, crop, workers, progress.update)
    if problems:
        raise folder.refusal(problems, run / "unreadable.txt")
    return prepared


def write_sample(path: Path, source: Source, predicted: Mapping[str, Tensor]) -> Path | None:
    """Of shapes10, write a test picture that was classified right; None of other data, which is not ours to copy."""
    if source.name != "shapes10":
        return None
    images = source.splits["test"]
    assert isinstance(images.pictures, Tensor), "shapes10 is drawn in memory"
    right = torch.nonzero(predicted["test"] == images.labels).flatten()
    stars = right[images.labels[right] == source.classes.index(SAMPLE)]
    if len(right) == 0:
        return None
    index = int((stars if len(stars) else right)[0])
    with archive.replacing(path) as temporary:
        Image.fromarray(images.pictures[index].permute(1, 2, 0).numpy()).save(temporary, "PNG")
    return path
