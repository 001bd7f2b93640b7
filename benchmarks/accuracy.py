"""What bf16 costs in accuracy: SqueezeNet with its ImageNet weights on real photos, by the service's engine.

Accuracy on TEST_DATA/photos, which has ImageNet's labels; agreement and probabilities on those and on hymenoptera.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import plots
from benchmarks.errors import BenchmarkError
from benchmarks.plan import Plan, Row
from benchmarks.results import Table
from models import artifact, optimisation
from models.architectures import classifier, load_pretrained
from models.formats import FORMATS, MAX_PIXELS
from models.manifest import Architecture
from training.measurement import wilson

ARCHITECTURE, WEIGHTS = "squeezenet1_0", "squeezenet1_0*.pth"
CLASSES = 1000
DTYPES = ("fp32", "bf16")
BATCH = 8
QUICK = 4  # images of each folder
QUICK_PX = 64


def measure(plan: Plan) -> list[Row]:
    """A row a photo: its label if it has one, both first classes, and how far their probabilities differ."""
    assert plan.data, "the command line has checked it"
    labels = read_labels(plan.data / "photos" / "labels.csv")
    photos = [plan.data / "photos" / name for name in labels]
    others = sorted((plan.data / "hymenoptera").rglob("*.jpg"))
    if plan.quick:
        photos, others = photos[:QUICK], others[:QUICK]
    paths = [*photos, *others]
    model = squeezenet(plan.data, plan.models, QUICK_PX if plan.quick else None)
    half, full = (answers(model, dtype, paths, plan) for dtype in reversed(DTYPES))
    rows: list[Row] = []
    for path, fp32, bf16 in zip(paths, full, half, strict=True):
        differences = (fp32 - bf16).abs()
        rows.append({"photo": path.name, "label": labels.get(path.name), "fp32": int(fp32.argmax())})
        rows[-1] |= {"bf16": int(bf16.argmax()), "largest": float(differences.max())}
        rows[-1] |= {"first": float(differences[fp32.argmax()])}
    return rows


def read_labels(path: Path) -> dict[str, int]:
    """ImageNet's class index by the photo's name.

    Raises:
        BenchmarkError: there is no such file.
    """
    if not path.is_file():
        raise BenchmarkError(
            f"no photos/labels.csv in {path.parents[1]}; name a folder that has it by TEST_DATA or --data"
        )
    with path.open(newline="") as file:
        return {row["file"]: int(row["imagenet_index"]) for row in csv.DictReader(file)}


def squeezenet(data: Path, models: Path, input_size: int | None) -> Path:
    """An artifact of the pretrained network, for its usual input size or another; classes are numbered, not named.

    Raises:
        BenchmarkError: there are no weights.
    """
    weights = next((data / "weights").glob(WEIGHTS), None)
    if weights is None:
        raise BenchmarkError(f"no weights/{WEIGHTS} in {data}")
    path = models / f"squeezenet-imagenet-{input_size or 'usual'}.pt"
    if not path.is_file():
        network = classifier(ARCHITECTURE, CLASSES, input_size=input_size)
        load_pretrained(network.network, torch.load(weights, map_location="cpu", weights_only=True))
        known = Architecture(name=ARCHITECTURE, arguments={"num_classes": CLASSES})
        names = tuple(f"imagenet-{index}" for index in range(CLASSES))
        artifact.save(path, network, name=ARCHITECTURE, classes=names, architecture=known)
    return path


def answers(model: Path, dtype: str, paths: Sequence[Path], plan: Plan) -> Tensor:
    """Probabilities of all photos: float32 (N, 1000)."""
    size = 1 if plan.quick else BATCH  # trying out what pays takes long in bf16 without hardware for it
    ready = optimisation.prepare(artifact.load(model), torch.device(plan.device), dtype, size)
    rows, found = ready.rows(size), []
    for start in range(0, len(paths), size):
        batch = paths[start : start + size]
        for path, row in zip(batch, rows, strict=False):
            ready.decode(path.read_bytes(), FORMATS, MAX_PIXELS, row)
        found.append(ready.predict(list(rows[: len(batch)])))
    plan.say(f"{len(paths)} photos in {dtype}")
    return torch.cat(found)


def tables(rows: Sequence[Row]) -> list[Table]:
    """Accuracy in both formats, and how they differ."""
    labelled = [row for row in rows if row["label"] is not None]
    accuracies = []
    for dtype in DTYPES:
        right, n = sum(row[dtype] == row["label"] for row in labelled), len(labelled)
        low, high = wilson(right, n)
        accuracies.append([dtype, f"{right / n:.1%}", f"{low:.1%}-{high:.1%}", str(n)])
    same = sum(row["fp32"] == row["bf16"] for row in rows)
    largest = [row["largest"] for row in rows]
    mean = sum(row["first"] for row in rows) / len(rows)
    differing = [
        ["same first class", f"{same} of {len(rows)}"],
        ["largest difference of any probability", f"{max(largest):.4f}"],
        ["mean difference of the first class's probability", f"{mean:.4f}"],
    ]
    return [
        Table("SqueezeNet 1.0 on labelled photos", ("", "accuracy", "95 % interval (Wilson)", "photos"), accuracies),
        Table("fp32 and bf16 on all photos", ("", ""), differing),
    ]


def figure(rows: Sequence[Row]) -> Figure:
    """The largest difference of each photo, in order."""
    drawn, (axes,) = plots.panels(1, width=6)
    for same, colour, label in ((True, plots.OURS, "same first class"), (False, plots.OTHER, "another first class")):
        ordered = sorted(rows, key=lambda row: row["largest"])
        at = [place for place, row in enumerate(ordered) if (row["fp32"] == row["bf16"]) is same]
        axes.plot(at, [ordered[place]["largest"] for place in at], "o", color=colour, markersize=4, label=label)
    axes.set(xlabel="photo, in order", ylabel="largest difference of a probability", yscale="log")
    axes.legend(frameon=False)
    return drawn
