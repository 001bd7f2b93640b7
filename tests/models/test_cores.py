"""How many cores there are, by affinity and by control groups as the kernel shows them in files."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models import cores

Groups = Callable[[str, dict[str, str]], tuple[Path, Path]]
HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    """Makes `/proc/PID/cgroup` with this text and `/sys/fs/cgroup` with these files."""

    def make(membership: str, files: dict[str, str]) -> tuple[Path, Path]:
        (tmp_path / "cgroup").write_text(membership)
        root = tmp_path / "fs"
        root.mkdir()
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return tmp_path / "cgroup", root

    return make


def version_1(folder: str, quota: int, period: int) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [("200000 100000\n", [2.0]), ("150000 100000\n", [1.5]), ("5000 10000\n", [0.5]), ("max 100000\n", [])],
)
def test_version_2_names_a_quota_and_a_period_or_max(groups: Groups, written: str, expected: list[float]) -> None:
    assert expected == list(cores.limits(*groups("0::/app\n", {"app/cpu.max": written})))


def test_a_tighter_group_above_limits_too(groups: Groups) -> None:
    files = {"pod/app/cpu.max": "400000 100000\n", "pod/cpu.max": "100000 100000\n", "cpu.max": "max 100000\n"}
    where = groups("0::/pod/app\n", files)

    assert [4.0, 1.0] == list(cores.limits(*where))
    assert 1 == cores.available(*where)


def test_in_a_namespace_of_its_own_the_group_is_the_root(groups: Groups) -> None:
    assert [3.0] == list(cores.limits(*groups("0::/\n", {"cpu.max": "300000 100000\n"})))


def test_groups_beside_this_one_limit_nothing(groups: Groups) -> None:
    files = {"app/cpu.max": "max 100000\n", "other/cpu.max": "100000 100000\n", "app/below/cpu.max": "100000 100000\n"}

    assert [] == list(cores.limits(*groups("0::/app\n", files)))


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1_keeps_quota_and_period_in_two_files(groups: Groups, controllers: str) -> None:
    files = version_1(f"{controllers}/docker/1", 250_000, 100_000)
    where = groups(f"5:memory:/docker/1\n4:{controllers}:/docker/1\n1:name=systemd:/\n", files)

    assert [2.5] == list(cores.limits(*where))


def test_version_1_without_a_limit_says_minus_one(groups: Groups) -> None:
    assert [] == list(cores.limits(*groups("4:cpu:/\n", version_1("cpu", -1, 100_000))))


def test_version_1_in_a_container_is_the_mounted_root_where_the_path_is_the_hosts(groups: Groups) -> None:
    assert [2.0] == list(cores.limits(*groups("4:cpu:/docker/1\n", version_1("cpu", 200_000, 100_000))))


def test_nothing_above_the_hierarchy_is_read(groups: Groups) -> None:
    files = version_1(".", 100_000, 100_000) | {"cpu.max": "100000 100000\n"}

    assert [] == list(cores.limits(*groups("4:cpu:/app\n", files)))


def test_the_tighter_of_both_versions_holds(groups: Groups) -> None:
    files = version_1("cpu/app", 100_000, 100_000) | {"app/cpu.max": "300000 100000\n"}
    where = groups("4:cpu:/app\n0::/app\n", files)

    assert [1.0, 3.0] == sorted(cores.limits(*where))
    assert 1 == cores.available(*where)


@pytest.mark.parametrize("text", ["", "100000", "many 100000", "100000 0 0"])
def test_a_file_that_cannot_be_read_as_a_limit_is_none(groups: Groups, text: str) -> None:
    assert [] == list(cores.limits(*groups("0::/\n", {"cpu.max": text})))


def test_without_files_there_is_no_limit(groups: Groups, tmp_path: Path) -> None:
    assert [] == list(cores.limits(tmp_path / "none", tmp_path))
    assert [] == list(cores.limits(*groups("0::/app\n4:cpu:/app\n", {})))
    assert cores.available(tmp_path / "none", tmp_path) == HERE


def test_a_part_of_a_core_is_a_core_and_affinity_limits_what_a_quota_allows(groups: Groups) -> None:
    where = groups("0::/\n", {"cpu.max": "1 100000\n"})
    assert 1 == cores.available(*where)

    (where[1] / "cpu.max").write_text(f"{HERE * 100_000 - 1} 100000\n")
    assert cores.available(*where) == HERE
    (where[1] / "cpu.max").write_text(f"{HERE * 900_000} 100000\n")
    assert cores.available(*where) == HERE


def test_a_process_bound_to_one_core_has_one_and_needs_no_torch_to_know() -> None:
    bound = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    ask = "import sys; from models import cores; print(cores.available(), 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", bound + ask], capture_output=True, text=True, check=True).stdout

    assert "1 False" == printed.strip()
