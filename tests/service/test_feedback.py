"""Feedback through a real service: who is found, what is counted, what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests import running
from tests.artifacts import CLASSES
from tests.pictures import noise
from tests.running import Service


@pytest.fixture(scope="module")
def several(model: Path) -> Iterator[Service]:
    """Several HTTP processes: the kernel chooses which answers a connection."""
    with running.serving(model, "--http-processes", "3") as started:
        yield started


def tell(service: Service, said: object) -> requests.Response:
    """POST a feedback, over a connection of its own."""
    return service.post(json.dumps(said).encode(), "/feedback", Content_Type="application/json")


def predicted(service: Service, request_id: str, body: bytes = noise()) -> str:
    """The class that a picture is answered with under this id."""
    reply = service.post(body, X_Request_ID=request_id)
    return str(running.predictions(reply)[0]["class"])


def counted(service: Service) -> tuple[float, float]:
    """How many predictions were said to be right, and wrong."""
    right, wrong = (service.sample("darkroom_feedback_total", outcome=name) for name in ("right", "wrong"))
    return right, wrong


def test_it_tells_whether_the_prediction_was_right_whichever_process_made_it(several: Service) -> None:
    before = counted(several)
    for number in range(12):
        name = predicted(several, f"any-{number}", noise(number))
        other = next(wrong for wrong in CLASSES if wrong != name)
        label = other if number % 3 else name
        reply = tell(several, {"request_id": f"any-{number}", "class": label})

        expected = {"request_id": f"any-{number}", "predicted": name, "class": label, "right": label == name}
        assert (200, expected) == (reply.status_code, reply.json())
    after = counted(several)
    assert (4, 8) == (after[0] - before[0], after[1] - before[1])


def test_the_same_again_changes_nothing_and_another_class_is_a_correction(several: Service) -> None:
    name = predicted(several, "twice")
    other = next(wrong for wrong in CLASSES if wrong != name)
    right, wrong = counted(several)
    for _ in range(8):
        assert tell(several, {"request_id": "twice", "class": other}).json()["right"] is False
    assert (right, wrong + 1) == counted(several)
    assert tell(several, {"request_id": "twice", "class": name}).json()["right"] is True
    assert (right + 1, wrong + 1) == counted(several)


def test_an_id_that_is_used_again_means_the_latest_image(several: Service) -> None:
    for seed in range(4):
        name = predicted(several, "again", noise(seed))
        right, wrong = counted(several)
        assert tell(several, {"request_id": "again", "class": name}).json()["right"] is True
        assert (right + 1, wrong) == counted(several)


def test_an_image_of_several_is_named_by_its_place_and_those_without_a_prediction_are_unknown(service: Service) -> None:
    files = [("file", noise(seed)) for seed in (1, 2)] + [("file", b"no image")]
    headers = {"X-Request-ID": "three"}
    reply = requests.post(service.url + "/predict", files=files, headers=headers, timeout=30).json()
    names = [result["predictions"][0]["class"] for result in reply["results"][:2]]

    for image, name in enumerate(names):
        told = tell(service, {"request_id": "three", "image": image, "class": name}).json()
        assert (image, name, True) == (told["image"], told["predicted"], told["right"])
    assert 404 == tell(service, {"request_id": "three", "image": 2, "class": names[0]}).status_code
    unnamed = tell(service, {"request_id": "three", "class": names[0]})
    assert (400, "bad_parameter") == (unnamed.status_code, unnamed.json()["code"])
    assert "image" in unnamed.json()["detail"]


def test_predictions_of_the_open_inference_protocol_can_be_judged_too(service: Service) -> None:
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 32, 32], "data": [50] * 3072}
    body = json.dumps({"inputs": [pixels]}).encode()
    reply = service.post(body, "/v2/models/test/infer", X_Request_ID="tensor").json()
    (name,) = next(output["data"] for output in reply["outputs"] if output["name"] == "class")

    assert tell(service, {"request_id": "tensor", "class": name}).json()["right"] is True


BAD: list[tuple[Any, int, str]] = [
    ({"request_id": "unheard-of", "class": "class-1"}, 404, "not_found"),
    ({"request_id": "known", "class": "a class of another model"}, 400, "bad_parameter"),
    ({"request_id": "known", "class": "\ud800"}, 400, "bad_parameter"),
    ({"request_id": "\ud800", "class": "class-1"}, 400, "bad_parameter"),
    ({"request_id": "../../etc", "class": "class-1"}, 400, "bad_parameter"),
    ({"request_id": "known"}, 400, "bad_json"),
    ({"class": "class-1"}, 400, "bad_json"),
    ({"request_id": 7, "class": "class-1"}, 400, "bad_json"),
    ({"request_id": "known", "class": ["class-1"]}, 400, "bad_json"),
    ({"request_id": "known", "class": "class-1", "image": True}, 400, "bad_json"),
    ({"request_id": "known", "class": "class-1", "image": -1}, 400, "bad_json"),
    ({"request_id": "known", "class": "class-1", "image": 4}, 400, "bad_json"),
    (["known", "class-1"], 400, "bad_json"),
    ({"request_id": "known", "class": "class-1", "more": "x" * 5000}, 413, "too_large"),
]


@pytest.mark.parametrize(("said", "status", "code"), BAD)
def test_what_cannot_be_judged_is_refused(service: Service, said: object, status: int, code: str) -> None:
    before = counted(service)
    predicted(service, "known")
    reply = tell(service, said)

    assert (status, code) == (reply.status_code, reply.json()["code"]), reply.text
    assert before == counted(service)


def test_classes_are_named_to_whom_gives_another(service: Service) -> None:
    reply = tell(service, {"request_id": "known", "class": "cat"})

    assert all(name in reply.json()["detail"] for name in CLASSES)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 4000, b'"\xff"', b'{"request_id": NaN}'])
def test_a_body_that_is_no_json_is_refused(service: Service, body: bytes) -> None:
    reply = service.post(body, "/feedback", Content_Type="application/json")

    assert (400, "bad_json") == (reply.status_code, reply.json()["code"])


def test_a_page_of_another_site_cannot_send_it_unasked(service: Service) -> None:
    reply = service.post(b'{"request_id": "known", "class": "class-1"}', "/feedback", Content_Type="text/plain")

    assert (415, "content_type") == (reply.status_code, reply.json()["code"])


def test_stages_and_answer_times_are_of_predictions_alone(service: Service) -> None:
    predicted(service, "timed")
    names = [("darkroom_stage_duration_seconds_count", {"stage": stage}) for stage in ("receive", "respond")]
    before = [service.sample(name, **labels) for name, labels in names]
    tell(service, {"request_id": "timed", "class": "class-1"})

    assert before == [service.sample(name, **labels) for name, labels in names]
    assert service.sample("darkroom_requests_total", route="/feedback", status="200") >= 1


@pytest.mark.slow
def test_it_needs_a_key_where_keys_are_set_and_is_not_there_where_it_is_off(model: Path) -> None:
    with running.serving(model, "--no-feedback", DARKROOM_API_KEYS="secret") as service:
        assert 404 == tell(service, {"request_id": "a", "class": "class-1"}).status_code
        assert "/feedback" not in service.get("/openapi.json").json()["paths"]
    with running.serving(model, DARKROOM_API_KEYS="secret") as service:
        service.post(noise(), X_Request_ID="a", X_API_Key="secret")
        body = b'{"request_id": "a", "class": "class-1"}'
        said = {"Content_Type": "application/json"}
        assert 401 == service.post(body, "/feedback", **said).status_code
        assert 200 == service.post(body, "/feedback", **said, X_API_Key="secret").status_code
