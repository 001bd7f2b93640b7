"""Images kept for the next training, in ImageFolder layout; only where `--keep-images` names a folder.

    DIR/.waiting/REQUEST_ID.jpg     predicted; of several images REQUEST_ID+0.jpg, REQUEST_ID+1.jpg, ...
    DIR/CLASS/REQUEST_ID.jpg        somebody has said what it is

Each HTTP process writes by a thread of its own, and drops images rather than let anybody wait. The main process removes
what is too old, and the oldest of what is too much: first what nobody has judged.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from stat import S_ISREG
from threading import Thread
from time import monotonic, sleep, time
from typing import NamedTuple

from models.formats import hidden
from service.logs import logger
from service.metrics import KEPT, KEPT_BYTES, Cells, Metrics
from service.settings import Settings, SettingsError

WAITING = ".waiting"
DAY_S = 86_400
QUEUED_BYTES = 32 << 20  # that may wait for the disk
FOUND_WITHIN_S, AGAIN_S = 2.0, 0.1  # another process may still be writing what is judged here
SOUGHT = 256  # at once, that are not there; each costs a few looks at the disk every time
CLOSE_S = 5.0
SWEEP_S, COUNT_S = 1.0, 60.0  # how often the size is looked at, and the folder itself
FULL, SWEPT = 0.9, 0.8  # of the size: when files are removed, and down to which
NAME_BYTES = 255
SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
OTHER_SUFFIX = ".tif"


class Kept(NamedTuple):
    """A file in the album; those that were judged sort behind those that wait, and young ones behind old ones."""

    judged: bool
    modified: float  # seconds since the epoch
    size: int
    path: Path


def prepare(folder: Path, model: str, classes: Sequence[str]) -> Path:
    """Make sure that images can be kept, before anything heavy is imported; where: of one among several in its folder.

    Raises:
        SettingsError: they cannot; one line.
    """
    for name in classes:
        if "/" in name or "\0" in name or hidden(name) or len(name.encode()) > NAME_BYTES:
            raise SettingsError(f"--keep-images: no folder that training reads can be called {name!r}, as a class is")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if model:
            if (folder / WAITING).is_dir():
                raise SettingsError(f"--keep-images {folder}: it holds one model's images; move them to {folder}/NAME")
            folder /= model
            folder.mkdir(mode=0o700, exist_ok=True)
        if not (folder / WAITING).is_dir() and any(folder.iterdir()):
            # What is too old or too much in it is removed: that must not be anybody's own pictures.
            raise SettingsError(f"--keep-images {folder}: it holds other files; name a new or an empty folder")
        (folder / WAITING).mkdir(mode=0o700, exist_ok=True)
        for kind in classes:
            with suppress(FileNotFoundError):
                os.listdir(folder / kind)  # which must be possible, to remove what is old
        write(probe := folder / WAITING / "probe", b"")
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"--keep-images {folder}: {error.strerror}") from None
    return folder


class Album:
    """One HTTP process's way to the folder."""

    def __init__(
        self, folder: Path, classes: Sequence[str], most: int, metrics: Metrics, everybody: Sequence[Cells]
    ) -> None:
        """Up to `most` bytes are kept, as all processes together have counted."""
        self.folder, self.classes, self.most = folder, classes, most
        self.metrics, self.everybody = metrics, everybody
        self.jobs: SimpleQueue[Callable[[], bool] | None] = SimpleQueue()
        self.given = self.taken = 0  # bytes; the one is the event loop's, the other the thread's
        self.failing = False
        self.sought: list[tuple[float, Callable[[], bool]]] = []  # until when, and how to move it
        self.thread = Thread(target=self.run, name="album", daemon=True)

    def keep(self, request_id: str, image: int | None, body: bytes) -> None:
        """Keep an image, soon."""
        if self.given - self.taken + len(body) > QUEUED_BYTES:
            self.metrics.add(KEPT, "dropped")
            return
        self.given += len(body)
        self.jobs.put(partial(self.write, name_of(request_id, image) + suffix_of(body), body))

    def label(self, request_id: str, image: int | None, label: int, before: int | None) -> None:
        """Move an image to its class, soon; it waits, or lies where it was said to belong `before`."""
        source = self.folder / (WAITING if before is None else self.classes[before])
        move = partial(self.move, source, name_of(request_id, image), self.folder / self.classes[label])
        self.jobs.put(partial(self.seek, move))

    def close(self) -> None:
        """Finish what is to be done, if the disk lets it."""
        self.jobs.put(None)
        self.thread.join(CLOSE_S)

    def run(self) -> None:
        """Do what comes, until the end and what is sought then."""
        ended, again = False, 0.0
        while not ended or self.sought:
            with suppress(Empty):
                job = self.jobs.get(timeout=AGAIN_S if self.sought else None)
                ended = ended or job is None
                if job:
                    self.attempt(job)
            if (now := monotonic()) < again:
                continue
            again = now + AGAIN_S
            self.sought = [(until, move) for until, move in self.sought if not self.attempt(move) and until > now]

    def attempt(self, job: Callable[[], bool]) -> bool:
        """Do it, whatever the disk says; whether nothing is left to do."""
        try:
            done = job()
        except OSError as error:
            self.metrics.add(KEPT, "failed")
            if not self.failing:
                logger.error("images cannot be kept", extra={"reason": error.strerror})
            self.failing = True
            return True
        return done

    def seek(self, move: Callable[[], bool]) -> bool:
        """Look for an image for a while, unless many are sought: another process may still be writing it."""
        if not move() and len(self.sought) < SOUGHT:
            self.sought.append((monotonic() + FOUND_WITHIN_S, move))
        return True

    def write(self, name: str, body: bytes) -> bool:
        """Write an image, if there is room."""
        self.taken += len(body)
        if total(self.everybody, self.metrics) + len(body) > self.most:
            self.metrics.add(KEPT, "dropped")
            return True
        write(self.folder / WAITING / name, body)
        self.failing = False
        self.metrics.add(KEPT, "written")
        self.metrics.add(KEPT_BYTES, n=len(body))
        return True

    def move(self, source: Path, name: str, target: Path) -> bool:
        """Move an image to the folder of its class, if it is there."""
        for path in (source / (name + suffix) for suffix in (*SUFFIXES.values(), OTHER_SUFFIX)):
            if path.exists():
                target.mkdir(mode=0o700, exist_ok=True)
                path.rename(target / path.name)
                self.metrics.add(KEPT, "labelled")
                return True
        return False


class Sweeper:
    """The main process's watch over size and age."""

    def __init__(
        self, settings: Settings, folder: Path, classes: Sequence[str], metrics: Metrics, everybody: Sequence[Cells]
    ) -> None:
        """`metrics` has cells that nobody else writes; in them is what the folder holds beyond what others wrote."""
        self.folder, self.classes = folder, classes
        self.most, self.oldest = settings.keep_bytes, settings.keep_days * DAY_S
        self.metrics, self.everybody = metrics, everybody
        self.counted = 0.0  # when, CLOCK_MONOTONIC
        told = {"folder": str(folder), "bytes": self.most, "days": settings.keep_days}
        logger.warning("images are kept", extra=told)
        self.sweep()

    def run(self) -> None:
        """Sweep whenever it is time."""
        while True:
            sleep(SWEEP_S)
            if monotonic() - self.counted > COUNT_S or total(self.everybody, self.metrics) > FULL * self.most:
                try:
                    self.sweep()
                except OSError as error:
                    logger.error("kept images cannot be counted", extra={"reason": error.strerror})

    def sweep(self) -> None:
        """Count the folder, and remove what is too old or too much."""
        before = total(self.everybody, self.metrics) - self.metrics.value(KEPT_BYTES)
        files = sorted(self.files())
        size = sum(file.size for file in files)
        allowed = SWEPT * self.most if size > FULL * self.most else self.most
        removed = judged = 0
        kept = ""
        for file in files:
            if size > allowed or time() - file.modified > self.oldest:
                try:
                    file.path.unlink(missing_ok=True)
                except OSError as error:
                    kept = str(error)
                    continue
                size -= file.size
                removed += 1
                judged += file.judged
        if kept:
            logger.error("kept images cannot be removed", extra={"reason": kept})
        if removed:
            self.metrics.add(KEPT, "removed", n=removed)
            logger.info("kept images were removed", extra={"images": removed, "judged": judged})
        self.metrics.set(KEPT_BYTES, size - before)
        self.counted = monotonic()

    def files(self) -> Iterator[Kept]:
        """What is in the album."""
        for name in (WAITING, *self.classes):
            with suppress(FileNotFoundError), os.scandir(self.folder / name) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if S_ISREG(found.st_mode):  # a folder is a program's own, or a person's
                            yield Kept(name != WAITING, found.st_mtime, found.st_size, Path(entry.path))


def total(everybody: Sequence[Cells], metrics: Metrics) -> float:
    """The bytes that are kept, as all processes together have counted."""
    ((at, _),) = metrics.places[KEPT_BYTES.name].values()
    return sum(cells[at] for cells in everybody)


def name_of(request_id: str, image: int | None) -> str:
    """What a file is called but for its suffix; training would not read one that is hidden."""
    visible = request_id if request_id[0].isalnum() else f"id{request_id}"
    return visible if image is None else f"{visible}+{image}"


def suffix_of(body: bytes) -> str:
    """By the first bytes; the decoder has taken it for one of these."""
    return next((suffix for magic, suffix in SUFFIXES.items() if body.startswith(magic)), OTHER_SUFFIX)


def write(path: Path, body: bytes) -> None:
    """A file that its owner alone may read, whole or not there."""
    part = path.with_name(f".{path.name}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(body)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
