"""What all tests share: real data by TEST_DATA, and STRICT=1, under which tests skip only for what a machine lacks."""

import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from tests import artifacts

# Machines are shared, so no deadline; the same examples every time, so that a failure is the code's, not the dice's.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("house")

STRICT = os.environ.get("STRICT") == "1"
# What the reason of a skip must contain: a GPU, or the right to start a Docker engine, cannot be installed.
LACKING = ("no GPU", "no Docker engine can start here")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data that TEST_DATA names; skips where it is not set."""
    folder = os.environ.get("TEST_DATA")
    if not folder:
        pytest.skip("TEST_DATA is not set")
    assert Path(folder).is_dir(), f"TEST_DATA={folder} is no folder"
    return Path(folder)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact file; read, never written."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    artifacts.write(path)
    return path


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Under STRICT=1, turn a skip for any reason but what cannot be had into a failure."""
    expected_failure = hasattr(report, "wasxfail")
    if (
        STRICT
        and report.skipped
        and not expected_failure
        and not any(reason in str(report.longrepr) for reason in LACKING)
    ):
        report.outcome = "failed"
        report.longrepr = f"STRICT=1 allows no skip but for {' or '.join(LACKING)}: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skips inside tests and fixtures."""
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skips of whole files."""
    report = yield
    refuse_skip(report)
    return report
