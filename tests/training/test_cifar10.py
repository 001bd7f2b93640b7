"""CIFAR-10's loader on small files of the real layout: the real ones are large, and the real host is slow."""

import contextlib
import hashlib
import http.server
import pickle
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from training import cifar10
from training.errors import TrainingError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
IMAGES = 20  # a batch


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, type[CIFAR10]]:
    """A folder in CIFAR-10's layout, and a data set that expects just these files."""
    folder = tmp_path / "cifar" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    random = np.random.RandomState(0)
    for name in BATCHES:
        rows = random.randint(0, 256, (IMAGES, 3072)).astype(np.uint8)  # red plane, then green, then blue
        labels = [index % 10 for index in range(IMAGES)]
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels, "batch_label": name}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    tgz = tmp_path / CIFAR10.filename
    with tarfile.open(tgz, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    expected = {
        "train_list": [[name, md5(folder / name)] for name in BATCHES[:5]],
        "test_list": [["test_batch", md5(folder / "test_batch")]],
        "meta": CIFAR10.meta | {"md5": md5(folder / "batches.meta")},
        "tgz_md5": md5(tgz),
    }
    return tmp_path / "cifar", type("Small", (CIFAR10,), expected)


@contextlib.contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_labels_and_names_are_those_of_the_files(small: tuple[Path, type[CIFAR10]]) -> None:
    folder, dataset = small
    source = cifar10.load(folder, dataset=dataset)

    assert tuple(NAMES) == source.classes
    assert {"train": 5 * IMAGES, "test": IMAGES} == {name: len(images) for name, images in source.splits.items()}
    images = source.splits["test"]
    assert isinstance(images.pictures, torch.Tensor)
    rows = pickle.loads((folder / CIFAR10.base_folder / "test_batch").read_bytes())["data"]
    assert np.array_equal(rows.reshape(-1, 3, 32, 32), images.pictures.numpy())
    assert [index % 10 for index in range(IMAGES)] == images.labels.tolist()


def test_a_damaged_file_is_refused(small: tuple[Path, type[CIFAR10]]) -> None:
    folder, dataset = small
    batch = folder / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1] + b"!")

    with pytest.raises(TrainingError, match="incomplete or damaged"):
        cifar10.load(folder, dataset=dataset)


def test_a_mirror_gives_what_is_missing(small: tuple[Path, type[CIFAR10]], tmp_path: Path) -> None:
    _, dataset = small
    with mirror(tmp_path) as address:
        source = cifar10.load(tmp_path / "new", f"{address}/{CIFAR10.filename}", dataset)

    assert 5 * IMAGES == len(source.splits["train"])
    assert len(cifar10.load(tmp_path / "new", "http://unused.invalid", dataset).splits["test"]) == IMAGES


def test_a_mirror_that_sends_another_file_is_refused_and_nothing_kept(
    small: tuple[Path, type[CIFAR10]], tmp_path: Path
) -> None:
    with mirror(tmp_path) as address, pytest.raises(TrainingError, match="sent another file"):
        cifar10.load(tmp_path / "new", f"{address}/cifar/{CIFAR10.base_folder}/batches.meta", small[1])

    assert [] == list((tmp_path / "new").iterdir())


def test_a_host_that_does_not_answer_is_named_with_advice(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # bound, but nobody listens: connections are refused

        with pytest.raises(TrainingError, match=rf"127.0.0.1:{port}/x does not deliver .*--data-url.*--data-dir"):
            cifar10.load(tmp_path / "new", f"http://127.0.0.1:{port}/x")


@pytest.mark.parametrize("url", ["no-address", "ftp//x", "http://host:port/x"])
def test_a_url_that_is_none_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"--data-url {url}: no address"):
        cifar10.load(tmp_path / "new", url)
