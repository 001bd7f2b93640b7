"""What a scrape tells beside what is counted."""

import os
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service import __version__, compiled
from service.present import Present
from service.settings import Settings
from service.transport import Transport
from tests import running
from tests.running import Service


def test_a_scrape_tells_the_build_the_workers_and_how_long_they_loaded(service: Service) -> None:
    (build,) = [line for line in service.get("/metrics").text.splitlines() if line.startswith("darkroom_build_info{")]

    assert f'version="{__version__}"' in build
    assert f'torch="{version("torch")}"' in build
    assert f'compiled="{str(compiled).lower()}"' in build
    assert 1 == service.sample("darkroom_workers_ready")
    assert 1024 == service.sample("darkroom_capacity_images")
    assert 0 < service.sample("darkroom_load_seconds") < 90


def test_cpu_memory_and_files_are_those_of_all_processes(service: Service) -> None:
    pids = [service.process.pid, *service.children()]
    memory = sum(psutil.Process(pid).memory_info().rss for pid in pids)
    before = service.sample("process_cpu_seconds_total")
    service.post_together([b"no image"] * 300)

    assert memory == pytest.approx(service.sample("process_resident_memory_bytes"), rel=0.2)
    assert service.sample("process_open_fds") > 10 * len(pids) / 2
    assert service.sample("process_cpu_seconds_total") > before
    assert psutil.Process(service.process.pid).create_time() == pytest.approx(
        service.sample("process_start_time_seconds"), abs=1
    )


def test_cpu_seconds_of_a_lost_worker_are_not_forgotten(model: Path) -> None:
    with running.serving(model) as service:
        before = service.sample("process_cpu_seconds_total")
        (worker,) = running.workers_among(service.children())
        os.kill(worker, 9)
        while not service.sample("darkroom_worker_restarts_total"):
            pass

        assert service.sample("process_cpu_seconds_total") >= before


def test_without_a_gpu_nothing_is_told_of_gpus(service: Service) -> None:
    assert "darkroom_gpu" not in service.get("/metrics").text


def test_a_gpu_that_no_driver_shows_has_no_samples() -> None:
    transport = Transport(1, 1, 1 << 16)
    transport.tell(0, {"device": "cuda:0", "load_seconds": 1.0})
    registry = CollectorRegistry()
    settings = Settings(model=Path("model.pt"), _cli_parse_args=[])  # type: ignore[call-arg]
    registry.register(Present(settings, {"test": transport}, os.getpid()))
    text = generate_latest(registry).decode()

    assert "# TYPE darkroom_gpu_utilization_ratio gauge" in text
    assert "darkroom_gpu_memory_used_bytes{" not in text or Path("/dev/nvidia0").exists()
