import io
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from darkroom.client import Answer, Client, Prediction, PredictionError
from tests.darkroom.others import ANSWER, KEY, Reply
from tests.pictures import noise
from tests.running import Service, halted, predictions, serving, workers_among

BUSY: Reply = (503, {"Retry-After": "1"}, {})
FINE: Reply = (200, {}, ANSWER)


def refused(client: Client, image: Any = b"x") -> PredictionError:
    with pytest.raises(PredictionError) as caught:
        client.predict(image)
    return caught.value


def probabilities(answers: Sequence[Answer | PredictionError]) -> list[float]:
    return [one.best.probability for one in answers if isinstance(one, Answer)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_an_answer_is_what_the_service_replies(service: Service) -> None:
    told = predictions(service.post(noise(), "/predict?top_k=3"))
    with Client(service.url + "/") as client:
        answer = client.predict(noise(), top_k=3)

    assert [(one["class"], one["index"], one["probability"]) for one in told] == [
        (one.name, one.index, one.probability) for one in answer.predictions
    ]
    assert told[0]["class"] == answer.best.name
    assert ("test", False) == (answer.model, answer.unknown)


def test_an_image_is_a_path_bytes_or_a_file(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(noise())
    with Client(service.url) as client:
        answers = [client.predict(image) for image in (path, str(path), noise(), io.BytesIO(noise()))]

    assert 1 == len({answer.predictions for answer in answers})


def test_many_answers_come_in_order_with_errors_in_their_places(service: Service) -> None:
    images = [noise(seed) for seed in range(100)]
    images[7] = b"no image"
    with Client(service.url, concurrency=4) as client:
        answers = list(client.predict_many(images))
        alone = [client.settled(image) for image in images]

    assert isinstance(answers[7], PredictionError)
    assert (415, "unsupported_format") == (answers[7].status, answers[7].code)
    assert probabilities(alone) == pytest.approx(probabilities(answers), abs=1e-4)
    assert 99 == sum(isinstance(one, Answer) for one in answers)


def test_images_are_taken_as_their_turn_comes(service: Service) -> None:
    taken: list[int] = []
    images = (noise(taken.append(seed) or seed) for seed in range(1000))  # type: ignore[func-returns-value]
    with Client(service.url, concurrency=2) as client:
        next(client.predict_many(images))

    assert 8 == len(taken)


def test_a_refusal_is_an_error_with_status_code_and_request_id(service: Service) -> None:
    with Client(service.url) as client:
        error = refused(client, noise()[:200])

    assert (422, "undecodable") == (error.status, error.code)
    assert error.detail
    assert str(error.request_id) in service.stderr.read_text()


def test_a_body_that_is_too_large_is_told_so(service: Service) -> None:
    with Client(service.url) as client:
        assert "too_large" == refused(client, bytes(10 << 20)).code


def test_a_file_that_cannot_be_read_is_an_error(service: Service, tmp_path: Path) -> None:
    with Client(service.url) as client:
        assert "unreadable: No such file or directory" == str(refused(client, tmp_path / "no.png"))


def test_health_and_info_are_documents(service: Service) -> None:
    with Client(service.url) as client:
        assert "ready" == client.health()["status"]
        assert 10 == len(client.info()["manifest"]["classes"])


def test_what_the_service_asks_to_wait_is_waited(other: Any) -> None:
    server = other(BUSY, FINE)
    begun = monotonic()
    with Client(server.url) as client:
        answer = client.predict(b"x")

    assert Prediction("cat", 3, 0.5) == answer.best
    assert 1 <= monotonic() - begun < 5
    assert 2 == len(server.asked)


def test_every_attempt_bears_the_same_id_and_what_is_left_of_the_time(other: Any) -> None:
    server = other(BUSY, FINE)
    with Client(server.url, timeout=10) as client:
        client.predict(b"x")
    first, second = server.asked

    assert first["X-Request-ID"] == second["X-Request-ID"]
    assert 9_000 < int(first["X-Timeout-Ms"]) <= 10_000
    assert 1_000 <= int(first["X-Timeout-Ms"]) - int(second["X-Timeout-Ms"])


def test_no_wait_goes_past_the_timeout(other: Any) -> None:
    server = other((429, {"Retry-After": "60"}, {"code": "capacity", "detail": "full", "request_id": "b"}))
    begun = monotonic()
    with Client(server.url, timeout=5) as client:
        error = refused(client)

    assert ("capacity", 429, 60, "b") == (error.code, error.status, error.retry_after, error.request_id)
    assert monotonic() - begun < 5
    assert 1 == len(server.asked)


def test_a_service_that_does_not_answer_is_left_after_the_timeout(other: Any) -> None:
    server = other()
    with Client(server.url, timeout=0.5) as client:
        assert "timeout: no answer within 0.5 s" == str(refused(client))


def test_a_connection_that_is_cut_is_made_anew(other: Any) -> None:
    server = other(None, None, FINE)
    with Client(server.url) as client:
        assert "cat" == client.predict(b"x").best.name


def test_what_will_not_pass_is_asked_once(other: Any) -> None:
    server = other((500, {}, {}))
    with Client(server.url) as client:
        assert "unexpected" == refused(client).code
    assert 1 == len(server.asked)


@pytest.mark.parametrize(
    "reply", [(200, {}, []), (200, {}, {"predictions": []}), (302, {"Location": "/"}, {}), (404, {}, "no")]
)
def test_another_servers_reply_is_an_error(other: Any, reply: Any) -> None:
    with Client(other(reply).url) as client:
        assert "unexpected" == refused(client).code


def test_where_no_service_is_the_error_says_what_to_do() -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", retries=1) as client:
        error = refused(client)

    assert (None, "unreachable") == (error.status, error.code)
    assert f"http://127.0.0.1:{port}; start one with: darkroom serve" in error.detail


def test_a_time_that_is_over_before_anything_was_asked_is_a_timeout() -> None:
    with Client("http://127.0.0.1:9", timeout=1e-9, retries=0) as client:
        assert "timeout" == refused(client).code


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".b"])
def test_a_host_that_none_can_be_called_is_an_error_as_others_are(host: str) -> None:
    with Client(f"http://{host}", retries=0) as client:
        assert refused(client).code in ("unexpected", "unreachable")


def test_a_path_with_a_zero_byte_cannot_be_read() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(PredictionError, match="null"):
        client.predict("a\0b")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://there", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="no address of a service"):
        Client(url)


@pytest.mark.slow
def test_a_service_that_starts_late_is_waited_for(model: Path) -> None:
    port = free_port()
    with Client(f"http://127.0.0.1:{port}", timeout=90, retries=1000) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.predict, noise())
        with serving(model, "--port", str(port)):
            assert "test" == asked.result(90).model


@pytest.mark.slow
def test_a_service_at_capacity_answers_all_in_the_end(guarded: Service) -> None:
    images, (worker,) = [noise(seed) for seed in range(16)], workers_among(guarded.children())
    with (
        Client(guarded.url, key=KEY, timeout=90, retries=1000, concurrency=8) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        with halted(worker):
            asked, deadline = pool.submit(list, client.predict_many(images)), monotonic() + 60
            while not guarded.sample("darkroom_refused_total", reason="capacity"):
                assert monotonic() < deadline

        assert [Answer] * 16 == list(map(type, asked.result(90)))


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "sesame-open"])
def test_without_the_key_there_is_no_answer(guarded: Service, key: str | None) -> None:
    with Client(guarded.url, key=key) as client:
        error = refused(client, noise())

    assert (401, "unauthorized") == (error.status, error.code)
