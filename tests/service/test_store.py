"""Where versions are found, and which one a service begins with."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.errors import ArtifactError
from service.edition import differs
from service.store import Store, find
from tests import artifacts
from tests.running import UNPRIVILEGED
from tests.service.ends import MANIFEST

HOUSE = Path(__file__).parents[2]


def folder(path: Path, *names: str) -> Path:
    """A folder with empty files of these names."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def test_versions_are_called_by_their_files_names(tmp_path: Path) -> None:
    store = Store(folder(tmp_path / "photos", "2.pt", "1.pt", "notes.txt", ".hidden.pt", "sample.png"))

    assert ["1", "2"] == store.names()
    assert store.folder / "2.pt" == store.path("2") == store.path("2.pt")


@pytest.mark.parametrize("name", ["3", "", "../secret", "..", ".hidden", "/etc/passwd", "2\n"])
def test_only_what_lies_in_the_folder_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.pt").touch()
    store = Store(folder(tmp_path / "photos", "1.pt", "2.pt", ".hidden.pt"))
    with pytest.raises(LookupError, match="there are: 1, 2"):
        store.path(name)


def test_a_file_alone_has_what_lies_beside_it_as_other_versions(tmp_path: Path) -> None:
    one = folder(tmp_path / "photos", "1.pt", "2.pt") / "1.pt"

    assert (Store(tmp_path / "photos"), one) == find(one)[0]


@pytest.mark.parametrize("link", [True, False], ids=["a link", "text"])
def test_the_pointer_says_which_version_to_begin_with(tmp_path: Path, link: bool) -> None:
    store = Store(folder(tmp_path / "models" / "photos", "1.pt", "2.pt"))
    pointer = store.folder / "current"
    pointer.symlink_to("1.pt") if link else pointer.write_text("1\n")

    assert "1" == store.current()
    assert (store, store.folder / "1.pt") == find(tmp_path / "models")[0]


def test_a_pointer_to_nothing_is_told(tmp_path: Path) -> None:
    (folder(tmp_path / "photos", "1.pt") / "current").write_text("3")
    with pytest.raises(ArtifactError, match="no version 3; there are: 1"):
        find(tmp_path / "photos")


def test_without_a_pointer_the_one_that_was_made_last_begins(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "photos" / "b.pt", version="b")
    artifacts.write(tmp_path / "photos" / "a.pt", version="a")

    assert tmp_path / "photos" / "a.pt" == find(tmp_path)[0][1]


def test_a_folder_with_nothing_to_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found none"):
        find(tmp_path)


def test_a_folder_may_hold_several_models(tmp_path: Path) -> None:
    for name in ("photos", "drawings"):
        folder(tmp_path / name, "1.pt")
        (tmp_path / name / "current").write_text("1")
    folder(tmp_path / ".snapshot", "1.pt")
    folder(tmp_path / "notes", "_a.pt", "text")

    assert [tmp_path / "drawings" / "1.pt", tmp_path / "photos" / "1.pt"] == [path for _, path in find(tmp_path)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "other"}, "its name is other, not test"),
        ({"input_size": 64}, "its input size is 64, not 32"),
        ({"classes": ("b", "a")}, "its classes are not the same"),
        ({"version": "2", "created": datetime.now(UTC) + timedelta(1), "temperature": 2.0}, None),
    ],
)
def test_only_what_clients_rely_on_must_stay(change: dict[str, object], told: str | None) -> None:
    assert told == differs(MANIFEST, MANIFEST.model_copy(update=change))


def test_what_lies_beside_versions_and_what_a_file_system_keeps_for_itself_need_not_be_read(tmp_path: Path) -> None:
    """A volume of its own has a lost+found, which root alone may read."""
    folder(tmp_path / "one", "1.pt")
    folder(tmp_path / "several" / "photos", "1.pt")
    closed = [folder(tmp_path / "one" / "private"), folder(tmp_path / "several" / "lost+found")]
    for path in closed:
        path.chmod(0)
    ask = "import sys; from pathlib import Path; from service.store import find; print(len(find(Path(sys.argv[1]))))"
    for name in ("one", "several"):
        (tmp_path / name / "photos" / "current" if name == "several" else tmp_path / name / "current").write_text("1")
        command = [*UNPRIVILEGED, sys.executable, "-c", ask, str(tmp_path / name)]
        found = subprocess.run(command, capture_output=True, text=True, cwd=HOUSE)

        assert ("1\n", "") == (found.stdout, found.stderr)
    for path in closed:
        path.chmod(0o700)


def test_a_folder_that_may_not_be_read_is_told_and_no_model_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "models" / "photos", "1.pt")
    closed = folder(tmp_path / "models" / "secrets", "1.pt")
    ask = "import sys; from pathlib import Path; from service.store import find; find(Path(sys.argv[1]))"
    for path in (closed, closed.parent, tmp_path):
        path.chmod(0)
        command = [*UNPRIVILEGED, sys.executable, "-c", ask, str(tmp_path / "models")]
        said = subprocess.run(command, capture_output=True, text=True, cwd=HOUSE).stderr.splitlines()[-1]
        path.chmod(0o700)

        assert "ArtifactError: " in said
        assert f"expected an artifact or a folder of models that can be read, found Permission denied: {path}" in said
