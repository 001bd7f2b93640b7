"""What is true at the moment of a scrape: the build, the limits, the workers, the processes and the GPUs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from platform import python_version

import psutil
import pynvml
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import __version__, compiled
from service.settings import Settings
from service.transport import Transport

BUILD = {"version": __version__, "compiled": str(compiled).lower(), "python": python_version()}
BUILD |= {name: version(name) for name in ("torch", "litserve")}


class Present(Collector):
    """Nothing here is counted, so any process of the service may tell it; the process names are Prometheus' own."""

    def __init__(self, settings: Settings, transports: Mapping[str, Transport], main: int) -> None:
        """The models' transports by their names; `main` is the main process's id."""
        self.settings, self.transports, self.main = settings, transports, main
        self.cpu_seconds = 0.0  # seen: a process that ends at the wrong moment is missing once

    def describe(self) -> list[Metric]:
        """Nothing: registering must not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look."""
        build = GaugeMetricFamily("darkroom_build_info", "The program that serves", labels=tuple(BUILD))
        build.add_metric(tuple(BUILD.values()), 1)
        yield build
        told = {name: transport.told_on(transport.serving) for name, transport in self.transports.items()}
        loading = {name: max([one["load_seconds"] for one in facts], default=0.0) for name, facts in told.items()}
        ready = {name: len(facts) for name, facts in told.items()}
        images, room = dict.fromkeys(told, self.settings.capacity), dict.fromkeys(told, self.settings.capacity_bytes)
        yield by_model("darkroom_workers_ready", "Workers of the version that serves", ready)
        yield by_model("darkroom_capacity_images", "Images that may wait at once", images)
        yield by_model("darkroom_capacity_bytes", "Bytes of bodies that may wait at once", room)
        yield by_model("darkroom_load_seconds", "From a worker's start until it had proved the artifact", loading)
        yield from self.processes()
        if any(facts["device"].startswith("cuda") for workers in told.values() for facts in workers):
            yield from gpus()

    def processes(self) -> Iterator[Metric]:
        """All processes of the service together; memory that they share counts once in each."""
        seconds = memory = files = 0.0
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.main)
            # The youngest first: one that ends meanwhile is then in what its parent has taken over.
            for process in (*reversed(first.children(recursive=True)), first):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
                    with process.oneshot():
                        seconds += sum(process.cpu_times()[:4])  # with those of its children that have ended
                        memory += process.memory_info().rss
                    files += process.num_fds()
            started = "Start time of the main process since unix epoch in seconds."
            yield gauge("process_start_time_seconds", started, first.create_time())
        used = "Total user and system CPU time spent in seconds, by all processes."
        self.cpu_seconds = max(self.cpu_seconds, seconds)
        yield CounterMetricFamily("process_cpu_seconds_total", used, self.cpu_seconds)
        yield gauge("process_resident_memory_bytes", "Resident memory size in bytes, of all processes.", memory)
        yield gauge("process_open_fds", "Number of open file descriptors, in all processes.", files)


def gauge(name: str, told: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, told, value)


def by_model(name: str, told: str, values: Mapping[str, float]) -> Metric:
    """A gauge with a value for each model, labelled where there are several."""
    several = len(values) > 1
    made = GaugeMetricFamily(name, told, labels=["model"] if several else [])
    for model, value in values.items():
        made.add_metric([model] if several else [], value)
    return made


def gpus() -> Iterator[Metric]:
    """Every GPU that the driver shows; none where there is no driver."""
    used = GaugeMetricFamily("darkroom_gpu_utilization_ratio", "Share of time in which a GPU worked", labels=["gpu"])
    memory = GaugeMetricFamily("darkroom_gpu_memory_used_bytes", "Memory of a GPU that is taken", labels=["gpu"])
    total = GaugeMetricFamily("darkroom_gpu_memory_total_bytes", "Memory that a GPU has", labels=["gpu"])
    for number, handle in enumerate(handles()):
        with suppress(pynvml.NVMLError):  # a part of a divided GPU does not tell its use
            used.add_metric([str(number)], pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        with suppress(pynvml.NVMLError):
            found = pynvml.nvmlDeviceGetMemoryInfo(handle)
            memory.add_metric([str(number)], found.used)
            total.add_metric([str(number)], found.total)
    yield from (used, memory, total)


@cache
def handles() -> Sequence[object]:
    """The driver's handles, asked for once a process: after it was forked."""
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
