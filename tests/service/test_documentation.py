"""The service's description of itself matches what it does."""

import re

from service.errors import BY_CODE
from service.metrics import MODELS_ROUTE, OTHER_ROUTE, ROUTES, V2_INFER_ROUTE, V2_ROUTE
from tests.pictures import noise
from tests.running import Service

METRICS = {
    *("requests_total", "request_duration_seconds", "requests_in_flight", "stage_duration_seconds"),
    *("batch_size", "queue_depth", "images_total", "images_rejected_total", "refused_total"),
    *("client_disconnects_total", "batch_splits_total", "isolated_failures_total", "nonfinite_total"),
    "worker_restarts_total",
    *("model_info", "predictions_total", "prediction_confidence"),
    "unknown_total",
    *("swaps_total", "shadow_images_total", "shadow_duration_seconds"),
    *("image_brightness", "image_side_pixels", "drift_psi", "drift_images"),
    *("feedback_total", "kept_images_total", "kept_bytes"),
    *("answer_duration_seconds", "queue_bytes", "capacity_bytes"),
    *("build_info", "workers_ready", "capacity_images", "load_seconds"),
}
PROCESS_METRICS = {
    *("process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds")
}


def test_openapi_documents_every_route_and_every_code(service: Service) -> None:
    document = service.get("/openapi.json").json()

    routes = {
        "/predict",
        "/feedback",
        "/health",
        "/readyz",
        "/livez",
        "/metrics",
        "/info",
        "/",
        "/docs",
        "/openapi.json",
    }
    assert routes == {path for path in document["paths"] if not path.startswith("/v2")}
    assert {"/v2", "/v2/models/test", "/v2/models/test/infer", "/v2/repository/index"} < document["paths"].keys()
    assert sorted(BY_CODE) == document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]


def test_every_route_is_a_label_of_the_metrics(service: Service) -> None:
    paths = service.get("/openapi.json").json()["paths"].keys()
    routes = {path for path in paths if not path.startswith("/v2")}  # those share labels

    assert {*routes, "/page", V2_ROUTE, V2_INFER_ROUTE, MODELS_ROUTE, OTHER_ROUTE} == set(ROUTES)
    for route in routes:
        status = str(service.get(route).status_code)
        assert service.sample("darkroom_requests_total", route=route, status=status) >= 1
        assert service.sample("darkroom_request_duration_seconds_count", route=route) >= 1


def test_every_status_of_an_error_of_predict_is_documented(service: Service) -> None:
    responses = service.get("/openapi.json").json()["paths"]["/predict"]["post"]["responses"]
    elsewhere = {"not_found", "method_not_allowed", "client_disconnect", "unauthorized"}

    assert {str(int(leaf.status)) for code, leaf in BY_CODE.items() if code not in elsewhere} == responses.keys() - {
        "200"
    }


def test_every_reference_of_the_document_resolves(service: Service) -> None:
    reply = service.get("/openapi.json")
    schemas = reply.json()["components"]["schemas"]

    assert schemas.keys() >= set(re.findall(r"#/components/schemas/(\w+)", reply.text))


def test_the_docs_page_needs_no_outside_address(service: Service) -> None:
    page = service.get("/docs")

    assert 200 == page.status_code
    assert [] == re.findall(r'(?:src|href)="(?!/)', page.text)


def test_metrics_are_prometheus_text_without_a_redirect(service: Service) -> None:
    service.post(noise())
    service.get("/metrics")
    reply = service.get("/metrics")

    assert (200, []) == (reply.status_code, reply.history)
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = set(re.findall(r"^# TYPE (\w+)", reply.text, re.M))
    assert names == {f"darkroom_{name}" for name in METRICS} | PROCESS_METRICS


def test_every_code_has_a_class_with_its_own_text() -> None:
    assert all(leaf.__doc__ for leaf in BY_CODE.values())
    assert len(BY_CODE) == len({leaf.__doc__ for leaf in BY_CODE.values()})
