"""The files for Ray: the Serve configuration by Ray's own schema, the RayService as far as it goes without a cluster.

tests/service/test_replica.py serves with that configuration. KubeRay's resource has no schema here.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.call import LONGEST_TIMEOUT_MS
from service.settings import Settings
from tests.deploy.test_kubernetes import VERSIONS, validated

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
SERVE: dict[str, Any] = yaml.safe_load((FOLDER / "serve.yaml").read_text())
RAY_SERVICE: dict[str, Any] = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())


def known(given: Any, schema: dict[str, Any], schemas: dict[str, Any], path: str = "") -> None:
    """Every key of a configuration is one that the schema has; Ray itself takes a misspelt one without a word."""
    for reference in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
        if "$ref" in reference:
            known(given, schemas[reference["$ref"].rpartition("/")[2]], schemas, path)
            return
    if isinstance(given, list):
        for item in given:
            known(item, schema.get("items", {}), schemas, path)
    elif isinstance(given, dict) and "properties" in schema:
        for name, value in given.items():
            assert name in schema["properties"], f"{path}.{name}"
            known(value, schema["properties"][name], schemas, f"{path}.{name}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, when it is imported
def test_the_configuration_keeps_to_rays_schema() -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(SERVE)
    schema = ServeDeploySchema.model_json_schema()
    known(SERVE, schema, schema["$defs"])
    misspelt = {"applications": [{"deployments": [{"name": "Replica", "num_repicas": 1}]}]}
    with pytest.raises(AssertionError, match="num_repicas"):
        known(misspelt, schema, schema["$defs"])


def test_what_it_tells_the_service_are_settings_and_no_request_is_cut_short() -> None:
    (application,) = SERVE["applications"]
    (deployment,) = application["deployments"]

    assert application["args"].keys() <= Settings.model_fields.keys()
    longest = LONGEST_TIMEOUT_MS / 1000
    assert SERVE["http_options"]["request_timeout_s"] >= longest <= deployment["graceful_shutdown_timeout_s"]


def test_the_ray_service_serves_by_that_configuration() -> None:
    served = yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"])
    (application,) = served["applications"]
    application["args"]["model"] = application["args"]["model"].removeprefix("/")

    assert served == SERVE
    assert version("ray") == RAY_SERVICE["spec"]["rayClusterConfig"]["rayVersion"]


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("group", ["head", "workers"])
def test_its_pods_keep_to_the_schemas(tmp_path: Path, group: str, kubernetes: str) -> None:
    cluster = RAY_SERVICE["spec"]["rayClusterConfig"]
    spec = cluster["headGroupSpec"] if group == "head" else cluster["workerGroupSpecs"][0]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}} | spec["template"]
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))

    validated(tmp_path / "pod.yaml", kubernetes)
    assert pod["spec"]["enableServiceLinks"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
