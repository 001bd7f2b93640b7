"""The files for Kubernetes, as far as it goes without a cluster: against its schemas and against the service.

Custom resources (KEDA, the Prometheus operator, KServe) have no schema here; only what they refer to is checked.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service import __version__
from service.call import LONGEST_TIMEOUT_MS
from service.metrics import COUNTED
from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.34", "1.37")  # preStop.sleep came with 1.29
PLAIN = ("apps/v1", "v1", "policy/v1", "autoscaling/v2")
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def every() -> Iterator[Document]:
    for path in sorted(FOLDER.rglob("*.yaml")):
        yield from documents(path)


def of_kind(kind: str) -> Document:
    (found,) = [document for document in every() if document["kind"] == kind]
    return found


def pod() -> Document:
    found: Document = of_kind("Deployment")["spec"]["template"]["spec"]
    return found


def container() -> Document:
    (found,) = pod()["containers"]
    return dict(found)


def patched(document: Any, operations: list[Document]) -> Any:
    """A document after JSON patches (RFC 6902) that add and replace."""
    for operation in operations:
        *way, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
        place = document
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if last == "-":
            place.append(operation["value"])
        else:
            assert operation["op"] == "add" or last in place
            place[last] = operation["value"]
    return document


def validated(path: Path, version: str) -> None:
    """Strictly: misspelt fields too."""
    command = [str(Path(sys.executable).with_name("kubernetes-validate")), "--strict", "-k", version, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", sorted((FOLDER / "base").glob("[!k]*.yaml")), ids=lambda path: path.name)
def test_every_plain_file_keeps_to_the_schemas(path: Path, version: str) -> None:
    assert all(document["apiVersion"] in PLAIN for document in documents(path))
    validated(path, version)


def test_the_overlay_for_gpus_asks_for_one_and_keeps_to_the_schemas(tmp_path: Path) -> None:
    (overlay,) = documents(FOLDER / "gpu" / "kustomization.yaml")
    (patch,) = overlay["patches"]
    made = patched(of_kind("Deployment"), yaml.safe_load(patch["patch"]))
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(made))

    assert {"kind": "Deployment", "name": made["metadata"]["name"]} == patch["target"]
    found = made["spec"]["template"]["spec"]["containers"][0]
    assert 1 == found["resources"]["limits"]["nvidia.com/gpu"]
    assert {"name": "DARKROOM_DEVICE", "value": "cuda"} in found["env"]
    validated(tmp_path / "deployment.yaml", VERSIONS[-1])


def test_the_pod_is_hardened() -> None:
    assert pod()["enableServiceLinks"] is False
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert 10001 == pod()["securityContext"]["runAsUser"]
    assert {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    } == container()["securityContext"]


def test_a_pod_has_time_for_what_is_under_way_when_it_is_to_end() -> None:
    sleep = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    unready = container()["readinessProbe"]["periodSeconds"]

    assert sleep >= unready
    assert pod()["terminationGracePeriodSeconds"] > sleep + LONGEST_TIMEOUT_MS / 1000
    assert {"maxUnavailable": 0, "maxSurge": 1} == of_kind("Deployment")["spec"]["strategy"]["rollingUpdate"]


def test_probes_ask_what_they_are_for() -> None:
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}

    assert {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"} == paths
    assert container()["startupProbe"]["periodSeconds"] * container()["startupProbe"]["failureThreshold"] >= 120


def test_variables_are_settings_of_the_service() -> None:
    told = set(re.findall(r"\bDARKROOM_([A-Z_]+)\b", "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))))

    assert told
    assert {name.lower() for name in told} <= Settings.model_fields.keys()


def test_whatever_selects_pods_selects_these() -> None:
    labels = of_kind("Deployment")["spec"]["template"]["metadata"]["labels"]
    name = of_kind("Deployment")["metadata"]["name"]

    assert labels == of_kind("Deployment")["spec"]["selector"]["matchLabels"]
    assert labels == of_kind("Service")["spec"]["selector"]
    assert labels == of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    assert labels == of_kind("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert all(labels == one["labelSelector"]["matchLabels"] for one in pod()["topologySpreadConstraints"])
    assert name == of_kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
    assert name == of_kind("ScaledObject")["spec"]["scaleTargetRef"]["name"]
    ports = [port["name"] for port in of_kind("Service")["spec"]["ports"]]
    assert ports == [port["port"] for port in of_kind("ServiceMonitor")["spec"]["endpoints"]]


def test_every_file_is_named_by_a_kustomization_or_stands_alone() -> None:
    alone = {FOLDER / "kserve" / "inferenceservice.yaml", FOLDER / "prometheus-operator" / "servicemonitor.yaml"}
    named = {
        (path.parent / resource).resolve()
        for path in FOLDER.rglob("kustomization.yaml")
        for document in documents(path)
        for resource in document["resources"]
    }

    assert all(path.exists() for path in named)
    assert set(FOLDER.rglob("*.yaml")) - set(FOLDER.rglob("kustomization.yaml")) == alone | {
        path for path in named if path.is_file()
    }


def test_the_overlay_for_keda_takes_away_the_other_autoscaler() -> None:
    (overlay,) = documents(FOLDER / "keda" / "kustomization.yaml")
    deleted = yaml.safe_load(overlay["patches"][0]["patch"])

    assert "delete" == deleted["$patch"]
    there = of_kind("HorizontalPodAutoscaler")
    assert (there["kind"], there["metadata"]["name"]) == (deleted["kind"], deleted["metadata"]["name"])


def test_scaling_asks_for_metrics_that_there_are() -> None:
    (trigger,) = of_kind("ScaledObject")["spec"]["triggers"]
    asked = set(re.findall(r"darkroom_\w+", trigger["metadata"]["query"]))

    assert asked <= {family.name + ("_bucket" if family.buckets else "") for family in COUNTED}


def test_the_runtime_of_kserve_is_this_version_and_asks_under_v2() -> None:
    (held,) = of_kind("ServingRuntime")["spec"]["containers"]
    served = of_kind("InferenceService")["spec"]["predictor"]["model"]

    assert f"darkroom:{__version__}" == held["image"]
    assert ["v2"] == of_kind("ServingRuntime")["spec"]["protocolVersions"] == [served["protocolVersion"]]
    assert of_kind("ServingRuntime")["metadata"]["name"] == served["runtime"]
