"""HTTP as `service.protocol` speaks it: framing, pipelining, bodies that stall. A proxy has its own."""

import json
import re
import socket
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest
import requests

from tests.pictures import noise
from tests.running import Service, serving
from tests.service.test_predict import problem


def test_a_body_announced_too_large_is_refused_before_it_is_sent(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_what_is_no_http_is_a_problem_too(service: Service) -> None:
    for request in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        reply = answered_raw(service, request)

        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in reply
        assert "framing" == json.loads(reply.partition(b"\r\n\r\n")[2])["code"]


def answered_raw(service: Service, *requests: bytes) -> bytes:
    """All that comes back for these bytes until the server closes; more is sent once something has come back."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(requests[0])
        answered = b""
        for request in requests[1:]:
            answered += client.recv(4096)
            client.sendall(request)
        with suppress(ConnectionResetError):  # what was not read any more
            while received := client.recv(4096):
                answered += received
        return answered


def test_bytes_that_are_no_http_after_a_request_do_not_take_its_answers_place(service: Service) -> None:
    body = noise()
    answered = answered_raw(
        service, b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%bjunk \x00" % (len(body), body)
    )

    assert [b"200"] == re.findall(rb"HTTP/1.1 (\d+) ", answered)
    assert b"connection: close" in answered


def test_a_body_that_breaks_off_its_form_is_answered_and_counted_once(service: Service) -> None:
    before = [service.sample("darkroom_requests_total", route=route, status="400") for route in ("/predict", "other")]
    left = service.sample("darkroom_client_disconnects_total")
    answered = answered_raw(
        service, b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\nxyz\r\n"
    )

    assert [b"400"] == re.findall(rb"HTTP/1.1 (\d+) ", answered)
    after = [service.sample("darkroom_requests_total", route=route, status="400") for route in ("/predict", "other")]
    assert [before[0] + 1, before[1]] == after
    assert left == service.sample("darkroom_client_disconnects_total")


def test_a_body_that_an_upgrade_hides_is_never_taken_for_a_request(service: Service) -> None:
    hidden = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(hidden)

    assert [b"400"] == re.findall(rb"HTTP/1.1 (\d+) ", answered_raw(service, head, hidden))


def test_a_client_that_holds_its_body_back_and_is_refused_is_told_that_the_connection_ends(service: Service) -> None:
    head = b"POST /predict?top_k=x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 300\r\n\r\n"
    answered = answered_raw(service, head)

    assert answered.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answered


@pytest.mark.parametrize("start", [b"", b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"])
def test_a_head_or_trailer_that_does_not_end_is_refused(service: Service, start: bytes) -> None:
    start = start or b"GET / HTTP/1.1\r\n"
    answered = answered_raw(service, start + b"X: " + b"x" * 400_000)

    assert answered.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "headers"' in answered


def test_a_body_that_stalls_is_refused_at_the_deadline(service: Service) -> None:
    head = b"POST /predict HTTP/1.1\r\nX-Timeout-Ms: 50\r\nContent-Length: 300\r\n\r\nabc"
    answered = answered_raw(service, head)

    assert answered.startswith(b"HTTP/1.1 504 ")
    assert b'"code": "deadline"' in answered


def test_many_requests_at_once_on_one_connection_are_all_answered(service: Service) -> None:
    body = noise()
    first = b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    empty = b"POST /predict HTTP/1.1\r\nContent-Length: 0\r\n\r\n" * 3_000
    last = b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n"
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", answered_raw(service, first + empty + last))

    assert [b"200", *[b"400"] * 3_000, b"200"] == statuses


def test_an_upgrade_that_hides_the_body_is_named(service: Service) -> None:
    problem(service.post(noise(), upgrade="h2c", connection="Upgrade"), 400, "framing")


def test_requests_that_follow_without_waiting_are_answered_in_order(service: Service) -> None:
    bodies = [noise(1), b"junk", noise(2)]
    requested = b""
    for number, body in enumerate(bodies):
        closing = b"Connection: close\r\n" if number == 2 else b""
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Request-ID: number-%d\r\n%bContent-Length: %d\r\n\r\n"
        requested += head % (number, closing, len(body)) + body
    answered = answered_raw(service, requested)

    assert [b"200", b"415", b"200"] == re.findall(rb"HTTP/1.1 (\d+) ", answered)
    assert [b"number-0", b"number-1", b"number-2"] == re.findall(rb"x-request-id: (\S+)\r\n", answered)


def test_a_request_id_that_is_unfit_for_logs_is_replaced(service: Service) -> None:
    for bad in ("a" * 129, "no spaces", "<script>"):
        reply = service.post(noise(), x_request_id=bad)
        assert bad != reply.headers["x-request-id"] == reply.json()["request_id"]


def test_every_request_without_an_id_gets_one_of_its_own(service: Service) -> None:
    ids = {reply.headers["x-request-id"] for reply in service.post_together([noise()] * 40)}

    assert 40 == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)


def test_requests_under_one_head_are_each_answered_as_on_a_connection_of_their_own(service: Service) -> None:
    damaged = noise(size=(300, 200))[:-2000]
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n%b\r\n--x--\r\n'
    raw, several = {"Content-Type": "image/png"}, {"Content-Type": "multipart/form-data; boundary=x"}
    asked = [
        *((noise(seed, (8 * 2**seed, 30)), raw) for seed in range(6)),
        *((body, raw) for body in (damaged, b"", noise(7), bytes(200_001), b"x" * 200_000, noise(8), noise(8))),
        *((form % noise(seed, (40 + seed, 30)), several) for seed in range(3)),
        *((body, {"X-Timeout-Ms": "60000"}) for body in (noise(9), b"\r\n\r\n", noise(10))),
    ]
    ids = set()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as kept:
        for number, (body, headers) in enumerate(asked):
            if number % 7 == 3:
                assert 200 == exchange(kept, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")[0].status
            lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
            head = f"POST /predict?top_k=2 HTTP/1.1\r\nContent-Length: {len(body)}\r\n{''.join(lines)}\r\n"
            reply, told = exchange(kept, head.encode() + body)
            document = json.loads(told)
            alone = requests.post(service.url + "/predict?top_k=2", body, headers=headers, timeout=60)

            assert (alone.status_code, alone.headers["content-type"]) == (reply.status, reply.headers["content-type"])
            assert without_id(alone.json()) == without_id(document)
            assert document["request_id"] == reply.headers["x-request-id"]
            ids |= {document["request_id"], alone.json()["request_id"]}

    assert 2 * len(asked) == len(ids)


def exchange(connection: socket.socket, request: bytes) -> tuple[HTTPResponse, bytes]:
    """The reply to what is sent at once, and its body."""
    connection.sendall(request)
    reply = HTTPResponse(connection)
    reply.begin()
    return reply, reply.read()


def without_id(document: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in document.items() if name != "request_id"}


def test_a_body_that_is_too_large_is_refused_under_a_head_that_was_taken_before(model: Path) -> None:
    with serving(model, "--max-body-bytes", "9000") as service:
        host, port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as kept:
            found = [
                exchange(kept, b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)[0].status
                for body in (noise(), noise().ljust(9000, b"\0"), noise().ljust(9001, b"\0"), noise())
            ]

    assert [200, 200, 413, 200] == found


def test_a_length_of_thousands_of_digits_is_read_as_any_other(service: Service) -> None:
    body, head = noise(), b"POST /predict HTTP/1.1\r\nContent-Length: %b\r\n\r\n"
    long, last = head % (b"%05000d" % len(body)) + body, head % (b"9" * 5000)
    answered = answered_raw(service, long, long, last)

    assert [b"200", b"200", b"400"] == re.findall(rb"HTTP/1\.1 (\d+) ", answered)


def test_what_comes_before_a_half_close_is_answered_under_a_head_that_was_taken_before(service: Service) -> None:
    body = noise()
    request = b"POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as kept:
        before = [exchange(kept, request)[0].status for _ in range(2)]
        kept.sendall(request)
        kept.shutdown(socket.SHUT_WR)
        last = HTTPResponse(kept)
        last.begin()
        last.read()

        assert [200, 200, 200] == [*before, last.status]
        assert b"" == kept.recv(1)
