"""What torch.compile and AOTInductor would give in place of TorchScript: speed, difference of answers, start-up.

All three run the same classifier with the same weights, on all cores, batch size by batch size, in turn.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import plots
from benchmarks.plan import Plan, Row
from benchmarks.results import Table, distinct, number, spread, values
from models import artifact, optimisation
from models.architectures import classifier
from models.manifest import Architecture

BATCHES = (1, 8, 32)
CLASSES = 10
Run = Callable[[Tensor], Tensor]


def measure(plan: Plan) -> list[Row]:
    """A row a start, and one an architecture, way, batch size and round."""
    rows: list[Row] = []
    for name in plan.workloads:
        path = artifact_of(name, plan.models)
        size = artifact.load(path).manifest.input_size
        for batch in BATCHES[:1] if plan.quick else BATCHES:
            pixels = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
            pixels = pixels.to(plan.device)
            ready: dict[str, Run] = {}
            expected = eager(name, path, plan.device)(pixels)
            for way, start in WAYS.items():
                begun = time.perf_counter()
                run = start(name, path, plan.device, pixels)
                answer = run(pixels)
                seconds = time.perf_counter() - begun
                difference = float((answer - expected).abs().max())
                rows.append(
                    {"architecture": name, "way": way, "batch": batch, "start_s": seconds, "differs": difference}
                )
                plan.say(f"{name}, {way}, {batch} images: ready after {seconds:.1f} s")
                ready[way] = run
            for at in plan.numbers():
                for way, run in ready.items():
                    rate = batch * per_second(run, pixels, plan.seconds)
                    rows.append({"architecture": name, "way": way, "batch": batch, "round": at, "images_per_s": rate})
    return rows


def artifact_of(name: str, folder: Path) -> Path:
    """An untrained artifact of an architecture."""
    path = folder / f"{name}.pt"
    if not path.is_file():
        torch.manual_seed(0)
        known = Architecture(name=name, arguments={"num_classes": CLASSES})
        classes = [f"class-{index}" for index in range(CLASSES)]
        artifact.save(path, classifier(name, CLASSES), name=name, classes=classes, architecture=known)
    return path


def eager(name: str, path: Path, device: str) -> nn.Module:
    """The classifier anew from what the artifact tells, in eager mode."""
    loaded = artifact.load(path)
    model = classifier(name, CLASSES, input_size=loaded.manifest.input_size)
    model.load_state_dict(loaded.module.state_dict())
    return model.eval().requires_grad_(requires_grad=False).to(device)


def torchscript(_name: str, path: Path, device: str, pixels: Tensor) -> Run:
    """As the service runs it, with what it found to pay; its pixels lie as decoders write them."""
    engine = optimisation.prepare(artifact.load(path), torch.device(device), max_batch_size=len(pixels))
    decoded = pixels.permute(0, 2, 3, 1).contiguous()
    return lambda _: engine.forward(decoded)


def compiled(name: str, path: Path, device: str, _pixels: Tensor) -> Run:
    """`torch.compile`, for this batch size."""
    torch.compiler.reset()
    run: Run = torch.compile(eager(name, path, device), dynamic=False)
    return run


def ahead(name: str, path: Path, device: str, pixels: Tensor) -> Run:
    """`torch.export`, then AOTInductor, for this batch size."""
    program = torch.export.export(eager(name, path, device), (pixels,))
    target = Path(tempfile.mkdtemp(dir=path.parent)) / f"{name}.pt2"
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(target))
    run: Run = torch._inductor.aoti_load_package(package)
    return run


WAYS: Mapping[str, Callable[[str, Path, str, Tensor], Run]] = {
    "TorchScript": torchscript,
    "torch.compile": compiled,
    "AOTInductor": ahead,
}


@torch.inference_mode()
def per_second(run: Run, pixels: Tensor, seconds: float) -> float:
    """Passes a second, after two that warm up."""
    for _ in range(2):
        run(pixels)
    count, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds or not count:
        run(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize()
        count += 1
    return count / elapsed


def tables(rows: Sequence[Row]) -> list[Table]:
    """For each architecture and batch size all ways side by side."""
    cells = []
    for name in distinct(rows, "architecture"):
        for batch in distinct(rows, "batch"):
            for way in distinct(rows, "way"):
                here = {"architecture": name, "batch": batch, "way": way}
                rates = values(rows, "images_per_s", **here)
                usual = values(rows, "images_per_s", **here | {"way": "TorchScript"})
                ratio = [ours / other for ours, other in zip(rates, usual, strict=True)]
                (start,), (difference,) = (values(rows, column, **here) for column in ("start_s", "differs"))
                cells.append([name, way, str(batch), spread(rates), spread(ratio), number(start), f"{difference:.1g}"])
    columns = ("architecture", "", "images a batch", "images/s", "of TorchScript's", "start-up, s", "differs by")
    return [Table("The same classifier three ways, fp32", columns, cells, texts=2)]


def figure(rows: Sequence[Row]) -> Figure:
    """Images a second over the batch size, a panel an architecture."""
    names = distinct(rows, "architecture")
    drawn, panels = plots.panels(len(names), width=4)
    for axes, name in zip(panels, names, strict=True):
        for way, colour, marker in zip(WAYS, plots.COLOURS, "os^", strict=False):
            found = {
                float(batch): values(rows, "images_per_s", architecture=name, way=way, batch=batch)
                for batch in distinct(rows, "batch")
            }
            plots.line(axes, found, way, colour, marker)
        axes.set(title=name, xlabel="images a batch", ylim=(0, None))
    panels[0].set(ylabel="images a second")
    panels[0].legend(frameon=False)
    return drawn
