"""Every picture of a folder looked at once: whether it can be used, what is odd about it, which are the same."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from models.decode import decode
from models.errors import ImageError
from models.formats import FORMATS
from training.findings import Finding
from training.folder import Layout
from training.terminal import bar

SIDE = 16  # of the thumbnail whose gradients are compared
FLAT = 2.0  # levels between two of its pixels that tell nothing
ALIKE = 0.9  # cosine of the gradients' signs; see `signs`
COMPARED_AT_ONCE = 1 << 25  # cosines, 128 MiB
STRIP = 10  # times as long as wide, and longer
TINY = 16  # px, the longer side
UNEQUAL = 10  # times as many pictures in the largest class as in the smallest
FEW = 10  # pictures of a class
SUFFIXES_OF = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",)}
SUFFIXES_OF |= {"WEBP": (".webp",)}
CODES = {"unsupported_format": "unsupported", "undecodable": "damaged"}  # of an ImageError; others are `oversized`


@dataclass(frozen=True)
class Facts:
    """What is known of one picture; `signs` int8 (256,) is None where it cannot be used."""

    path: Path
    split: str
    kind: str
    findings: Sequence[Finding]
    digest: str = ""
    signs: Tensor | None = None


def inspect(layout: Layout, workers: int) -> list[Facts]:
    """Look at every picture, with progress."""
    pictures = [
        (path, split, kind) for split, kinds in layout.splits.items() for kind, paths in kinds.items() for path in paths
    ]
    with ThreadPoolExecutor(workers) as pool, bar(len(pictures), "checking") as progress:
        facts = []
        for fact in pool.map(lambda picture: look_at(*picture), pictures):
            facts.append(fact)
            progress.update()
    return facts


def look_at(path: Path, split: str, kind: str) -> Facts:
    """Read and decode one file."""
    finding = partial(Finding, where=str(path))
    facts = partial(Facts, path, split, kind)
    if path.is_symlink() and not path.exists():
        return facts([finding("broken_link", told=f"to {path.readlink()}")])
    try:
        body = path.read_bytes()
        if not body:
            return facts([finding("empty_file")])
        pixels = decode(body, input_size=4 * SIDE)
    except OSError as error:
        return facts([finding("unreadable", told=error.strerror or str(error))])
    except ImageError as error:
        return facts([finding(CODES.get(error.code, "oversized"), told=str(error))])
    findings = [finding(name, told=told) for name, told in oddities(path, body, pixels)]
    return facts(findings, hashlib.sha256(body).hexdigest(), signs(pixels))


def oddities(path: Path, body: bytes, pixels: Tensor) -> Iterator[tuple[str, str]]:
    """Kinds and details of what is odd about a picture that can be decoded."""
    low, high = pixels.amin((1, 2)), pixels.amax((1, 2))
    if int((high.int() - low.int()).max()) <= FLAT:
        yield "blank", f"RGB {tuple(pixels[:, 0, 0].tolist())}"
    try:
        opened = Image.open(io.BytesIO(body), formats=FORMATS)
    except OSError:  # metadata that decoding does without
        return
    with opened as image:
        (width, height), name = image.size, str(image.format)
        if path.suffix.lower() not in SUFFIXES_OF[name]:
            yield "wrong_extension", f"is {name}"
        if max(width, height) >= STRIP * min(width, height):
            yield "extreme_aspect", f"{width} x {height}"
        if max(width, height) < TINY:
            yield "tiny", f"{width} x {height}"
        if name in ("PNG", "WEBP") and (frames := getattr(image, "n_frames", 1)) > 1:
            yield "animated", f"{frames} frames"
        if image.mode == "CMYK":
            yield "cmyk", ""
        if name == "PNG" and body[24] == 16:  # IHDR's bit depth
            yield "sixteen_bit", ""
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            yield "transparent", ""
        with suppress(Exception):  # damaged metadata harm no pixels
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation in range(2, 9):
                yield "turned", f"orientation {orientation}"


def signs(pixels: Tensor) -> Tensor:
    """The perceptual hash that pictures are compared by: int8 (256,) of uint8 (3, H, W).

    For each pixel of a 16 x 16 grey thumbnail, whether it grows lighter (1) or darker (-1) to the right, or neither: a
    difference hash (N. Krawetz, "Kind of Like That", 2013) in which flat parts say nothing.
    """
    grey = pixels.float().mean(0)[None, None]
    thumbnail = nn.functional.interpolate(grey, (SIDE, SIDE + 1), mode="bilinear", antialias=True)[0, 0]
    steps = thumbnail.diff(dim=1).flatten()
    return (steps.sign() * (steps.abs() > FLAT)).to(torch.int8)


def compare(facts: Sequence[Facts]) -> list[Finding]:
    """What is wrong with pictures beside others: the same ones, almost the same ones, classes of unequal size."""
    usable = [fact for fact in facts if fact.signs is not None]
    return [*same(usable), *similar(usable), *unequal(usable)]


def same(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Files of the same bytes: in several classes, in several splits, or else one for nothing."""
    copies: dict[str, list[Facts]] = {}
    for fact in facts:
        copies.setdefault(fact.digest, []).append(fact)
    for first, *others in copies.values():
        if others:
            group = first, *others
            told = "also " + ", ".join(str(other.path) for other in others)
            conflict, leak = (len({getattr(fact, place) for fact in group}) > 1 for place in ("kind", "split"))
            found = {"conflict": conflict, "leak": leak, "duplicate": not conflict and not leak}
            for kind in [kind for kind, so in found.items() if so]:
                yield Finding(kind, str(first.path), told)


def similar(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Pictures that are almost another one before them, the most similar one of the same split and of others each."""
    facts = list({fact.digest: fact for fact in reversed(facts)}.values())[::-1]  # the first of each
    if not facts:
        return
    rows = nn.functional.normalize(torch.stack([fact.signs for fact in facts if fact.signs is not None]).float())
    names = sorted({fact.split for fact in facts})
    splits = torch.tensor([names.index(fact.split) for fact in facts])
    at_once = max(1, COMPARED_AT_ONCE // len(facts))
    for start in range(0, len(facts), at_once):
        cosines = rows[start : start + at_once] @ rows.T
        cosines.tril_(start - 1)  # with those before each, not with itself
        there = splits[start : start + at_once, None] == splits
        for kind, there_too in (("near_duplicate", there), ("near_leak", ~there)):
            closest = torch.where(there_too, cosines, 0).max(1)
            for row in torch.nonzero(closest.values >= ALIKE).flatten().tolist():
                other = facts[int(closest.indices[row])]
                told = f"like {other.path}, {float(closest.values[row]):.2f}"
                yield Finding(kind, str(facts[start + row].path), told)


def unequal(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Classes of `train` with few pictures, or many times fewer than another."""
    counts = Counter(fact.kind for fact in facts if fact.split == "train")
    for kind, count in sorted(counts.items()):
        if count < FEW:
            yield Finding("few_images", kind, f"{count} pictures")
    if counts:
        (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
        if most >= UNEQUAL * least:
            yield Finding("imbalance", smallest, f"{least} pictures, {most} of {largest}")
