"""Prometheus and Grafana's dashboard, by a real Prometheus that scrapes a real service under load."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from models.manifest import Histogram, Statistics
from models.statistics import BRIGHTNESS, CONFIDENCE, SIZE
from tests import artifacts, running
from tests.pictures import noise
from tests.running import Service

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "darkroom.json"
PATIENCE_S = 60
LOAD_S = 12  # several scrapes, so that every rate has something to compare
NEEDS_A_GPU = "darkroom_gpu_"
LIKE = Statistics(
    classes=(100,) * len(artifacts.CLASSES),
    **{
        name: Histogram(edges=edges, counts=(100,) * (len(edges) + 1))
        for name, edges in (("confidence", CONFIDENCE), ("brightness", BRIGHTNESS), ("size", SIZE))
    },
)
# What the client sends: body, content type, route and the status that it must be answered with.
SENT = (
    *((noise(seed, (70, 50), "JPEG"), "image/jpeg", "/predict", 200) for seed in range(4)),
    (b"no image", "image/jpeg", "/predict", 415),
    (noise(1)[:100], "", "/predict", 422),
    (b"{", "application/json", "/predict", 400),
    (b"{}", "", "/v2/models/test/infer", 400),
    (b"", "", "/nowhere", 404),
)


def tool(*arguments: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run promtool; skips where it is not installed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: make system")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120, **more)


@dataclass
class Watched:
    """A service, the Prometheus that scrapes it, and how often each answer was given."""

    service: Service
    url: str
    counted: Counter[tuple[str, int]]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that an expression gives now."""
        reply = requests.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert reply.status_code == 200, f"{expression}: {reply.text}"
        found: list[dict[str, Any]] = reply.json()["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """The one number that it gives; zero where there is none."""
        return sum(float(sample["value"][1]) for sample in self.query(expression))

    def until(self, expression: str, expected: float) -> None:
        """Wait until an expression has a value, by asking again and again."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.value(expression)) != expected:
            assert time.monotonic() < deadline, f"{expression} is {found}, expected {expected}"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service of several processes after load, in the middle of which a worker was killed."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: make system")
    folder = tmp_path_factory.mktemp("prometheus")
    artifacts.write(folder / "model.pt", validation_statistics=LIKE)
    flags = "--http-processes", "2", "--workers", "2", "--drift-window-s", "300"
    with running.serving(folder / "model.pt", *flags) as service, prometheus(folder, service) as url:
        found = Watched(service, url, Counter())
        found.until('up{job="darkroom"}', 1)
        load(found)
        yield found


@contextmanager
def prometheus(folder: Path, service: Service, rules: Path = PROMETHEUS / "rules.yml") -> Iterator[str]:
    """A Prometheus with the configuration of `deploy/`, that scrapes `service` every second; its address."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(rules)]
    (scraped,) = config["scrape_configs"]
    del scraped["dns_sd_configs"]
    scraped["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    flags = f"--config.file={folder}/prometheus.yml --storage.tsdb.path={folder}/data --web.listen-address={address}"
    command = ["setpriv", "--pdeathsig", "KILL", "prometheus", *flags.split(), "--log.level=error"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not answers(f"http://{address}/-/ready"):
                assert process.poll() is None
                assert time.monotonic() < deadline
            yield f"http://{address}"
        finally:
            process.kill()


def answers(url: str) -> bool:
    """Whether a GET is answered by 200."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def load(watched: Watched) -> None:
    """Send all of `SENT` again and again over several connections; kill a worker half-way."""
    until = time.monotonic() + LOAD_S
    victim = running.workers_among(watched.service.children())[0]
    killed = False

    def send(one: tuple[bytes, str, str, int]) -> tuple[str, int]:
        body, kind, path, _ = one
        headers = {"Content-Type": kind} if kind else {}
        reply = requests.post(watched.service.url + path, data=body, headers=headers, timeout=30)
        return path, reply.status_code

    with ThreadPoolExecutor(8) as pool:
        while time.monotonic() < until:
            for one, status in pool.map(send, islice(cycle(SENT), 200)):
                watched.counted[one, status] += 1
            if not killed and time.monotonic() > until - LOAD_S / 2:
                os.kill(victim, 9)
                killed = True


@pytest.mark.slow
def test_prometheus_counts_what_the_client_sent_whatever_process_answered(watched: Watched) -> None:
    routes = {"/v2/models/test/infer": "/v2/infer", "/nowhere": "other"}
    for (path, status), count in watched.counted.items():
        route = routes.get(path, path)
        watched.until(f'sum(darkroom_requests_total{{route="{route}",status="{status}"}})', count)
    assert {(path, status) for _, _, path, status in SENT} == watched.counted.keys()
    watched.until("darkroom_images_total", watched.counted["/predict", 200])
    watched.until("sum(darkroom_predictions_total)", watched.counted["/predict", 200])
    watched.until('darkroom_images_rejected_total{reason="undecodable"}', watched.counted["/predict", 422])
    watched.until('darkroom_images_rejected_total{reason="unsupported_format"}', watched.counted["/predict", 415])
    watched.until("darkroom_worker_restarts_total", 1)
    watched.until("darkroom_queue_depth + darkroom_queue_bytes + darkroom_requests_in_flight", 0)


@pytest.mark.slow
def test_no_counter_of_ours_ever_falls(watched: Watched) -> None:
    for name in ("darkroom_requests_total", "darkroom_images_total", "process_cpu_seconds_total"):
        assert 0 == watched.value(f"sum(resets({name}[5m]))"), name


@pytest.mark.slow
def test_no_rule_fails_and_none_wakes_anybody_but_for_the_killed_worker(watched: Watched) -> None:
    groups = requests.get(f"{watched.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) > 15
    assert [] == [rule["name"] for rule in rules if rule["health"] != "ok"]
    assert 0 == watched.value('count(ALERTS{alertstate="firing"}) or vector(0)')


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, without the rows between them."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every expression, with the variables as Grafana would put them."""
    notes = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    found = [target["expr"] for panel in panels() for target in panel["targets"]] + [note["expr"] for note in notes]
    filled = [expr.replace("$__rate_interval", "1m") for expr in found]
    return [expr.replace("$job", "darkroom").replace("$instance", ".*") for expr in filled]


@pytest.mark.slow
def test_every_expression_of_the_dashboard_gives_something(watched: Watched) -> None:
    empty = [expr for expr in expressions() if NEEDS_A_GPU not in expr and not watched.query(expr)]
    for expr in expressions():
        watched.query(expr)  # none is refused

    assert len(expressions()) > 30
    assert [] == empty


@pytest.mark.slow
def test_the_variables_of_the_dashboard_find_something(watched: Watched) -> None:
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            ((series, label),) = re.findall(r"^label_values\((.+), (\w+)\)$", variable["query"]["query"])
            found = watched.query(f"count by ({label}) ({series.replace('$job', 'darkroom')})")
            assert found, variable["name"]


def test_panels_have_ids_of_their_own_units_and_titles() -> None:
    document = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in document["panels"]]

    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]})
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))


def test_panels_do_not_overlap() -> None:
    taken = Counter(
        (x, y)
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )

    assert {1} == set(taken.values())
    assert all(0 <= x < 24 for x, _ in taken)


def test_promtool_finds_nothing_in_rules_and_configuration() -> None:
    for what, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        found = tool("check", what, str(PROMETHEUS / name))
        assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_every_alert_fires_on_what_it_is_for_and_stays_silent_otherwise() -> None:
    found = tool("test", "rules", "rules_test.yml", cwd=PROMETHEUS)

    assert found.returncode == 0, found.stdout + found.stderr
    alerts = set(re.findall(r"- alert: (\w+)", (PROMETHEUS / "rules.yml").read_text()))
    tested = (PROMETHEUS / "rules_test.yml").read_text()
    fired = {name for name, told in re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n(\s+- exp)", tested) if told}
    assert alerts == fired == set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", tested))


def test_every_alert_is_explained_to_whom_it_wakes() -> None:
    rules = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    text = (DEPLOY.parent / "docs" / "operating.md").read_text()
    headings = {re.sub(r"[^a-z]", "", line.lower()) for line in re.findall(r"^#+ (.+)$", text, re.M)}
    alerts = [rule for group in rules for rule in group["rules"] if "alert" in rule]

    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert "docs/operating.md" == page
        assert anchor in headings, alert["alert"]
        assert alert["labels"]["severity"] in ("page", "ticket")


@pytest.mark.slow
def test_promtool_finds_nothing_in_the_metrics(watched: Watched) -> None:
    found = tool("check", "metrics", input=watched.service.get("/metrics").text)

    assert (0, "") == (found.returncode, found.stdout + found.stderr)
