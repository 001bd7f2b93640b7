"""`POST /predict`: every input form, the replies, and every refusal; test_replica.py asks the same of Ray."""

import base64
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image

from models import artifact
from models.decode import decode
from tests.pictures import encode, noise
from tests.running import Service, predictions


def text(body: bytes) -> str:
    return base64.b64encode(body).decode()


def post_json(service: Service, document: object, path: str = "/predict") -> requests.Response:
    return requests.post(service.url + path, json=document, timeout=60)


def post_form(service: Service, *parts: tuple[str, bytes], path: str = "/predict") -> requests.Response:
    files = [(name, ("photo", body)) for name, body in parts]
    return requests.post(service.url + path, files=files, timeout=60)


def problem(reply: requests.Response, status: int, code: str) -> dict[str, object]:
    """The problem document of a refusal that must have this status and code."""
    assert (status, code) == (reply.status_code, reply.json().get("code")), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    document: dict[str, object] = reply.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= document.keys()
    assert document["status"] == status
    assert document["request_id"] == reply.headers["x-request-id"]
    return document


def test_a_reply_names_the_model_and_its_predictions_highest_first(service: Service) -> None:
    reply = service.post(noise(), content_type="image/png")
    document = reply.json()
    probabilities = [prediction["probability"] for prediction in document["predictions"]]

    assert ["request_id", "model", "predictions"] == list(document)
    assert "test" == document["model"]["name"]
    assert 5 == len(probabilities)
    assert sorted(probabilities, reverse=True) == probabilities
    assert all(f"class-{found['index']}" == found["class"] for found in document["predictions"])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_it_answers_what_the_artifact_answers(service: Service, model: Path, file_format: str) -> None:
    body = noise(3, (70, 50), file_format)
    module = artifact.load(model).module
    expected = module(module.preprocess(decode(body, input_size=32))[None])[0]
    found = predictions(service.post(body, "/predict?top_k=10"))

    answered = torch.zeros(10)
    for prediction in found:
        answered[prediction["index"]] = prediction["probability"]
    torch.testing.assert_close(expected, answered, atol=1e-4, rtol=0)


def test_every_input_form_gives_the_same_predictions(service: Service) -> None:
    body = noise(1)
    expected = predictions(service.post(body, content_type="image/png"))
    others = [
        service.post(body),
        service.post(body, content_type="application/octet-stream"),
        service.post(body, content_type="IMAGE/PNG"),
        service.post(body, content_type="image/jpeg"),
        post_form(service, ("file", body)),
        post_json(service, {"image": text(body)}),
        post_json(service, {"image": "data:image/png;base64," + text(body)}),
    ]

    assert [expected] * len(others) == [predictions(reply) for reply in others]


def test_chunked_bodies_are_accepted(service: Service) -> None:
    body = noise(1)
    reply = requests.post(f"{service.url}/predict", data=iter([body[:100], body[100:]]), timeout=60)

    assert predictions(service.post(body)) == predictions(reply)


@pytest.mark.parametrize("count", [1, 3])
def test_json_with_images_has_results_even_for_one(service: Service, count: int) -> None:
    bodies = [noise(seed) for seed in range(count)]
    document = post_json(service, {"images": [text(body) for body in bodies]}).json()

    assert ["request_id", "model", "results"] == list(document)
    expected = [{"predictions": predictions(service.post(body))} for body in bodies]
    assert [close(result) for result in expected] == [close(result) for result in document["results"]]


def close(result: dict[str, list[dict[str, float]]]) -> list[tuple[float, float]]:
    """What must be equal when an image is predicted in another batch."""
    return [(found["index"], round(found["probability"], 4)) for found in result["predictions"]]


def test_a_form_with_several_files_has_results_in_order(service: Service) -> None:
    bodies = [noise(seed) for seed in (5, 6)]
    document = post_form(service, *(("file", body) for body in bodies)).json()

    expected = [close({"predictions": predictions(service.post(body))}) for body in bodies]
    assert expected == [close(result) for result in document["results"]]


def test_other_fields_of_a_form_are_ignored(service: Service) -> None:
    assert 5 == len(predictions(post_form(service, ("comment", b"hello"), ("file", noise()))))


def test_one_bad_image_of_several_is_its_own_error(service: Service) -> None:
    reply = post_json(service, {"images": [text(noise()), text(b"no image"), "***", ""]})
    results = reply.json()["results"]

    assert 200 == reply.status_code
    assert "predictions" in results[0]
    codes = [(result["error"]["code"], result["error"]["status"]) for result in results[1:]]
    assert [("unsupported_format", 415), ("bad_json", 400), ("empty", 400)] == codes


def test_several_bad_images_give_the_first_errors_status_with_all_results(service: Service) -> None:
    reply = post_form(service, ("file", b"no image"), ("file", noise()[:100]))
    document = problem(reply, 415, "unsupported_format")

    assert isinstance(document["results"], list)
    assert ["unsupported_format", "undecodable"] == [result["error"]["code"] for result in document["results"]]


@pytest.mark.parametrize(
    ("query", "count"), [("", 5), ("?top_k=1", 1), ("?top_k=10", 10), ("?top_k=999999999999999999999", 10)]
)
def test_top_k_is_five_by_default_and_at_most_all_classes(service: Service, query: str, count: int) -> None:
    assert count == len(predictions(service.post(noise(), "/predict" + query)))


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "%2B3", "9" * 5000 + "x"])
def test_a_top_k_that_is_no_positive_integer_is_a_bad_parameter(service: Service, value: str) -> None:
    problem(service.post(noise(), f"/predict?top_k={value}"), 400, "bad_parameter")


def test_a_flood_of_query_fields_is_a_bad_parameter(service: Service) -> None:
    problem(service.post(noise(), "/predict?" + "a=1&" * 150), 400, "bad_parameter")


@pytest.mark.parametrize("value", ["0", "60001", "soon", "-5"])
def test_a_timeout_out_of_range_is_a_bad_parameter(service: Service, value: str) -> None:
    problem(service.post(noise(), x_timeout_ms=value), 400, "bad_parameter")


def test_a_request_id_is_echoed(service: Service) -> None:
    reply = service.post(noise(), x_request_id="my-id.1")

    assert "my-id.1" == reply.headers["x-request-id"] == reply.json()["request_id"]


def test_server_timing_names_the_four_stages_in_milliseconds(service: Service) -> None:
    header = service.post(noise()).headers["server-timing"]
    stages = dict(part.split(";dur=") for part in header.split(", "))

    assert ["receive", "queue", "decode", "inference"] == list(stages)
    assert all(0 <= float(duration) < 60_000 for duration in stages.values())
    assert float(stages["inference"]) > 0


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", {}, 400, "empty"),
        (b"", {"content_type": "application/json"}, 400, "empty"),
        (b"hello", {}, 415, "unsupported_format"),
        (b"hello", {"content_type": "text/plain"}, 415, "content_type"),
        (b"a=b", {"content_type": "application/x-www-form-urlencoded"}, 415, "content_type"),
        (noise(), {"content_encoding": "gzip"}, 415, "content_encoding"),
        (noise()[:200], {}, 422, "undecodable"),
        (encode(Image.new("L", (1001, 1000))), {}, 422, "too_many_pixels"),
        (encode(Image.new("L", (9, 9)), "GIF"), {"content_type": "image/png"}, 415, "unsupported_format"),
        (b"{", {"content_type": "application/json"}, 400, "bad_json"),
        (b"[" * 100_000, {"content_type": "application/json"}, 400, "bad_json"),
        (b"{}", {"content_type": "application/json"}, 400, "bad_json"),
        (b"[]", {"content_type": "application/json"}, 400, "bad_json"),
        (b'{"images": []}', {"content_type": "application/json"}, 400, "bad_json"),
        (b'{"images": [1]}', {"content_type": "application/json"}, 400, "bad_json"),
        (b'{"image": "http://127.0.0.1/a.png"}', {"content_type": "application/json"}, 400, "bad_json"),
        (b'{"image": ""}', {"content_type": "application/json"}, 400, "empty"),
        (b"x", {"content_type": "multipart/form-data"}, 400, "bad_form"),
        (b"x", {"content_type": "multipart/form-data; boundary=b"}, 400, "bad_form"),
        (b"--b--\r\n", {"content_type": "multipart/form-data; boundary=b"}, 400, "missing_file"),
        (b"--b\r\n", {"content_type": "multipart/form-data; boundary=b"}, 400, "bad_form"),
        (b"\0" * 200_001, {}, 413, "too_large"),
        (b"x", {"content_type": "multipart/form-data; boundary=" + "b" * 5000}, 400, "bad_form"),
        (b"x", {"content_type": "application/ld+json"}, 415, "content_type"),
    ],
)
def test_unusable_input_is_refused_by_name(
    service: Service, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    before = service.sample("darkroom_images_rejected_total", reason=code)
    problem(service.post(body, **headers), status, code)

    assert before + 1 == service.sample("darkroom_images_rejected_total", reason=code)


def test_advice_is_given_where_curl_and_phones_go_wrong(service: Service) -> None:
    curl = service.post(b"x", content_type="application/x-www-form-urlencoded").json()["detail"]
    phone = service.post(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1").json()["detail"]

    assert "-F file=@photo.jpg" in curl
    assert "convert the photo to JPEG" in phone


def test_forms_are_limited(service: Service) -> None:
    file = ("file", noise())
    problem(post_form(service, ("photo", noise())), 400, "missing_file")
    problem(post_form(service, ("file", b"")), 400, "empty")
    problem(post_form(service, *[file] * 5), 413, "too_many_images")
    problem(post_form(service, file, *[("note", b"x")] * 9), 400, "bad_form")
    problem(post_form(service, file, ("note", b"x" * 4097)), 400, "bad_form")


def test_json_with_too_many_images_is_refused(service: Service) -> None:
    problem(post_json(service, {"images": [text(noise())] * 5}), 413, "too_many_images")


def test_oversized_headers_are_refused(service: Service) -> None:
    problem(service.post(noise(), x_large="a" * 40_000), 431, "headers")


def test_bad_images_never_touch_their_neighbours(service: Service) -> None:
    good, bad = [noise(seed) for seed in range(40)], [b"junk", noise()[:150], b"\xff\xd8\xff\xe0junk"]
    alone = [close({"predictions": predictions(service.post(body))}) for body in good]
    mixed = [body for index, body in enumerate(good) for body in (body, bad[index % 3])]
    replies = service.post_together(mixed)

    assert alone == [close({"predictions": predictions(reply)}) for reply in replies[::2]]
    assert {415, 422} == {reply.status_code for reply in replies[1::2]}


def test_images_of_any_size_are_answered_together_as_alone(service: Service) -> None:
    sizes = [(1, 1), (1, 3000), (500, 20), (32, 32), (640, 480)]
    bodies = [noise(index, size) for index, size in enumerate(sizes * 4)]
    alone = [close({"predictions": predictions(service.post(body))}) for body in bodies]

    assert alone == [close({"predictions": predictions(reply)}) for reply in service.post_together(bodies)]


def test_no_refusal_shows_a_path_or_a_traceback(service: Service) -> None:
    replies = [
        service.post(b"junk"),
        service.post(noise()[:90]),
        service.get("/nope"),
        service.post(b"{", content_type="application/json"),
    ]

    for reply in replies:
        assert not any(word in reply.text for word in ("Traceback", 'File "', "site-packages", "/work", "0x")), (
            reply.text
        )


def test_a_connection_serves_on_after_refusals(service: Service) -> None:
    with requests.Session() as session:
        for body, status in ((noise(), 200), (b"junk", 415), (b"\0" * 300_000, 413), (noise(), 200)):
            assert status == session.post(f"{service.url}/predict", data=body, timeout=60).status_code
