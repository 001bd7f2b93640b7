"""Slow, broken and hostile clients, over raw sockets, beside others who must not notice."""

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest

from tests.pictures import noise
from tests.running import Service, halted, predictions, serving
from tests.service.test_lifecycle import listens, worker_of

pytestmark = pytest.mark.slow

HEADER_S, BODY_S = 1.0, 1.5
MOST = 8
POST = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PNG = noise()
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG
UNFINISHED = POST + b"Content-Length: 500\r\n\r\nx"
ORDER = b"POST /models/load HTTP/1.1\r\nHost: a\r\nX-API-Key: admin\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
STOP_READING = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def edge(model: Path) -> Iterator[Service]:
    """A service that loses its patience soon."""
    flags = ["--header-timeout-ms", str(int(HEADER_S * 1000)), "--body-timeout-ms", str(int(BODY_S * 1000))]
    with serving(model, *flags, "--max-body-bytes", "200000", DARKROOM_ADMIN_KEYS="admin") as started:
        yield started


@pytest.fixture(autouse=True)
def harmless(edge: Service) -> Iterator[None]:
    """Whatever a test has done, others are served, nothing is left over, and nobody was at fault."""
    yield
    predictions(edge.post(PNG))
    until(lambda: edge.sample("darkroom_requests_in_flight") == 0)
    assert 0 == edge.sample("darkroom_queue_depth")
    assert "a request failed" not in edge.stderr.read_text()


def until(condition: Callable[[], bool]) -> None:
    """Ask again until it is so, for ten seconds at most."""
    deadline = monotonic() + 10
    while not condition():
        assert monotonic() < deadline


@contextmanager
def connected(service: Service, *sent: bytes) -> Iterator[socket.socket]:
    """A connection on which something has been sent."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        for part in sent:
            client.sendall(part)
        yield client


def rest(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    answered = b""
    with suppress(ConnectionResetError):  # what it did not read any more
        while received := client.recv(65_536):
            answered += received
    return answered


def told(service: Service, *sent: bytes) -> bytes:
    """All that comes back for this until the server closes."""
    with connected(service, *sent) as client:
        return rest(client)


def statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answered)]


def refusal(answered: bytes) -> tuple[int, str]:
    """Status and code of a single problem document, after which the connection is closed."""
    (status,) = statuses(answered)
    head, _, body = answered.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    return status, json.loads(body)["code"]


def timed(service: Service, *each: bytes) -> list[tuple[bytes, float]]:
    """What comes back for each, sent at the same time, until the server closes, and after how many seconds it has."""
    started = monotonic()
    with ThreadPoolExecutor(len(each)) as pool:
        return list(pool.map(lambda sent: (told(service, sent), monotonic() - started), each))


def test_a_head_that_stalls_is_408(edge: Service) -> None:
    for answered, seconds in timed(edge, b"P", b"POST /predict HT", POST, POST + b"X-Long: a"):
        assert (408, "slow_client") == refusal(answered)
        assert HEADER_S - 0.1 < seconds < HEADER_S + 5


def test_the_head_of_a_later_request_that_stalls_is_408_too(edge: Service) -> None:
    assert [200, 408] == statuses(told(edge, WHOLE + b"GET"))


def test_a_head_that_drips_is_408_although_bytes_keep_coming(edge: Service) -> None:
    with connected(edge, POST) as client:
        client.settimeout(0.1)
        answered = b""
        started = monotonic()
        while not answered:
            client.sendall(b"X: y\r\n")
            with suppress(TimeoutError):
                answered = client.recv(65_536)

    assert (408, "slow_client") == refusal(answered)
    assert monotonic() - started < HEADER_S + 5


@pytest.mark.parametrize("framing", [b"Content-Length: 500\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n5\r\n"])
def test_a_body_that_drips_is_408_and_counted(edge: Service, framing: bytes) -> None:
    before = edge.sample("darkroom_images_rejected_total", reason="slow_client")
    left = edge.sample("darkroom_client_disconnects_total")
    with connected(edge, POST + framing) as client:
        client.settimeout(0.4)
        answered = b""
        started = monotonic()
        while not answered:
            client.sendall(b"x")
            with suppress(TimeoutError):
                answered = client.recv(65_536)

    assert (408, "slow_client") == refusal(answered)
    assert BODY_S - 0.1 < monotonic() - started < BODY_S + 5
    assert before + 1 == edge.sample("darkroom_images_rejected_total", reason="slow_client")
    assert left == edge.sample("darkroom_client_disconnects_total")


def test_a_deadline_before_the_bodys_time_is_over_holds(edge: Service) -> None:
    with connected(edge, POST + b"X-Timeout-Ms: 200\r\nContent-Length: 500\r\n\r\nx") as client:
        assert (504, "deadline") == refusal(client.recv(65_536))


def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for_either(edge: Service) -> None:
    framing = b" HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"
    early = timed(edge, b"GET /livez" + framing, b"POST /predict?top_k=0" + framing)

    assert [[200], [400]] == [statuses(answered) for answered, _ in early]
    assert all(seconds < BODY_S + 5 for _, seconds in early)


def test_a_client_that_reads_no_answers_is_cut_off(edge: Service) -> None:
    with connected(edge) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(BODY_S + 10)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000_000)


def test_an_idle_connection_is_kept_beyond_the_times_for_heads_and_bodies(edge: Service) -> None:
    with connected(edge, WHOLE) as client, connected(edge) as fresh, connected(edge, b"P") as slow:
        assert [200] == statuses(client.recv(65_536))
        with connected(edge, POST + b"Content-Length: 5\r\n\r\n") as slower:
            assert [408, 408] == [*statuses(slow.recv(65_536)), *statuses(slower.recv(65_536))]
        for idle in client, fresh:
            idle.sendall(WHOLE)
            assert [200] == statuses(idle.recv(65_536))


def test_two_hundred_slow_clients_harm_nobody(edge: Service) -> None:
    before = edge.sample("darkroom_images_rejected_total", reason="slow_client")
    starts = [b"POST /predict HT", UNFINISHED]
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        slow = [stack.enter_context(connected(edge, starts[number % 2])) for number in range(200)]
        answered = list(pool.map(lambda _: edge.post(PNG).status_code, range(200)))
        ends = [refusal(client.recv(65_536)) for client in slow]

    assert [200] * 200 == answered
    assert {(408, "slow_client")} == set(ends)
    assert before + 200 == edge.sample("darkroom_images_rejected_total", reason="slow_client")


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[Service]:
    """A service with room for few connections."""
    with serving(model, "--max-connections", str(MOST)) as started:
        yield started


def test_connections_that_were_idle_for_longest_make_room_for_others(small: Service) -> None:
    with ExitStack() as stack:
        silent, oldest, newest = [stack.enter_context(connected(small)) for _ in range(3)]
        for client in oldest, newest:
            client.sendall(WHOLE)
            assert [200] == statuses(client.recv(65_536))
        for _ in range(MOST - 3):
            stack.enter_context(connected(small, UNFINISHED))
        assert 429 == small.post(PNG).status_code  # none has been idle for a second: its next request may be on the way
        until(lambda: small.post(PNG).status_code == 200)
        answered = [small.post(PNG).status_code for _ in range(3)]
        assert b"" == silent.recv(65_536)
        newest.sendall(WHOLE)
        assert [200] == statuses(newest.recv(65_536))

    assert [200] * 3 == answered


def test_connections_beyond_the_limit_make_no_room_for_others(small: Service) -> None:
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(small, UNFINISHED))
        crowded = [stack.enter_context(connected(small)) for _ in range(3)]
        answered = [small.post(PNG).status_code for _ in range(6)]
        assert [b""] * 3 == [rest(client) for client in crowded]

    assert [429] * 6 == answered


def test_where_no_connection_is_idle_probes_are_answered_and_predictions_refused(small: Service) -> None:
    before = small.sample("darkroom_refused_total", reason="connections")
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(connected(small, UNFINISHED))
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            reply = small.get(path)
            assert (200, "close") == (reply.status_code, reply.headers["connection"])
        announced = small.post(PNG)
        with connected(small, POST + b"Content-Length: 199999\r\n\r\n") as client:
            refused = client.recv(65_536)  # its body is not waited for
        several = told(small, WHOLE + HIDDEN)
        (stalled, seconds), (silent, _) = timed(small, b"GET", b"")
    again = small.post(PNG)

    assert (429, "connections", "1", "close") == (
        announced.status_code,
        announced.json()["code"],
        announced.headers["retry-after"],
        announced.headers["connection"],
    )
    assert [(429, "connections")] * 2 == [refusal(refused), refusal(several)]
    assert before + 3 == small.sample("darkroom_refused_total", reason="connections")
    assert (408, "slow_client") == refusal(stalled)
    assert seconds < 4
    assert b"" == silent
    assert 200 == again.status_code


@pytest.mark.parametrize("sent", [WHOLE, WHOLE[:-9]], ids=["waiting", "in its body"])
def test_a_client_that_leaves_is_counted_and_forgotten(edge: Service, sent: bytes) -> None:
    before = edge.sample("darkroom_client_disconnects_total")
    with halted(worker_of(edge)):
        with connected(edge, sent):
            until(lambda: edge.sample("darkroom_requests_in_flight") == 1)
        until(lambda: edge.sample("darkroom_requests_in_flight") == 0)

    assert before + 1 == edge.sample("darkroom_client_disconnects_total")


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_ends_its_sending_side_gets_its_answers_still(edge: Service, count: int) -> None:
    left = edge.sample("darkroom_client_disconnects_total")
    with connected(edge) as client:
        with halted(worker_of(edge)):
            client.sendall(WHOLE * count + b"POST /predi")
            client.shutdown(socket.SHUT_WR)
            until(lambda: edge.sample("darkroom_requests_in_flight") == 1)
            edge.get("/livez")
        answered = rest(client)

    assert [200] * count == statuses(answered)
    assert 1 == answered.count(b"connection: close")
    assert left == edge.sample("darkroom_client_disconnects_total")


@pytest.mark.parametrize("path", [b"/metrics", b"/openapi.json", b"/nope"])
def test_other_routes_answer_a_client_that_ends_its_sending_side_too(edge: Service, path: bytes) -> None:
    with connected(edge, b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path) as client:
        client.shutdown(socket.SHUT_WR)
        (status,) = statuses(rest(client))

    assert status == (404 if path == b"/nope" else 200)


def test_pipelined_requests_to_all_routes_are_answered_in_order(edge: Service) -> None:
    asked = [(b"GET /livez", 200), (b"GET /nope", 404), (b"PUT /health", 405)]
    sent, expected = b"", []
    for line, status in asked * 20:
        sent += line + b" HTTP/1.1\r\nHost: a\r\n\r\n" + WHOLE
        expected += [status, 200]

    assert [*expected, 200] == statuses(told(edge, sent + STOP_READING))


def test_bytes_that_are_no_request_do_not_take_the_place_of_another_routes_answer(edge: Service) -> None:
    answered = told(edge, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\njunk \0\r\n\r\n")

    assert [200] == statuses(answered)
    assert b"connection: close" in answered


def test_a_body_that_breaks_off_after_its_refusal_gets_no_second_answer(edge: Service) -> None:
    assert [413] == statuses(told(edge, CHUNKED + b"30d41\r\n" + b"x" * 200_001 + b"\r\nzz\r\n"))


def chunks(body: bytes, size: int) -> bytes:
    """A body in chunks of so many bytes."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize("last", [b"0\r\n\r\n", b"0;a=b\r\n\r\n", b"0\r\nX-Trailer: a\r\n\r\n"])
def test_chunked_bodies_are_answered_as_whole_ones(edge: Service, last: bytes) -> None:
    expected = [found["class"] for found in predictions(edge.post(PNG))]
    answered = told(edge, CHUNKED + chunks(PNG, 7) + last + STOP_READING)

    assert [200, 200] == statuses(answered)
    assert expected == re.findall(r'"class": "([^"]+)"', answered.decode())


def test_a_hundred_thousand_chunks_of_a_byte_are_read_soon_and_leave_no_memory_behind(edge: Service) -> None:
    http = next(pid for pid in edge.children() if listens(pid))
    request = CHUNKED + chunks(PNG.ljust(100_000, b"\0"), 1) + b"0\r\n\r\n"
    sizes = []
    for _ in range(4):
        ((answered, seconds),) = timed(edge, request + STOP_READING)
        assert [200, 200] == statuses(answered)
        assert seconds < 2
        sizes.append(resident_bytes(http))

    assert sizes[-1] - sizes[0] < 8 << 20


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


BODY = b"\r\n\r\n0\r\n\r\n"
MALFORMED = [
    *(
        POST + b"Content-Length: %b\r\n\r\nabcd" % value
        for value in (b"-4", b"+4", b"0x4", b"4 4", b"", b"1_0", b"4,4")
    ),
    *(POST + b"Content-Length: %b\r\n\r\nabcd" % value for value in (b"18446744073709551620", b"9" * 26)),
    POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked" + BODY,
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4" + BODY,
    *(
        POST + b"Transfer-Encoding: " + value + BODY
        for value in (b"xchunked", b"identity", b"chunked, identity", b"gzip, chunked", b"chunked, chunked")
    ),
    *(POST + b"Transfer-Encoding: " + value + BODY for value in (b"\x0bchunked", b'"chunked"', b"\r\n chunked")),
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity" + BODY,
    POST + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked" + BODY,
    POST + b"Transfer-Encoding : chunked" + BODY,
    POST + b"Transfer-Encoding\t: chunked" + BODY,
    POST + b"Content-Length : 4\r\n\r\nabcd",
    POST + b"X: y\r\n z\r\nContent-Length: 4\r\n\r\nabcd",
    POST + b"X: y\nContent-Length: 4\r\n\r\nabcd",
    POST + b"X: y\rContent-Length: 4\r\n\r\nabcd",
    POST + b"X: a\0b\r\nContent-Length: 4\r\n\r\nabcd",
    b"POST /predict HTTP/1.1\nHost: a\nContent-Length: 4\n\nabcd",
    *(CHUNKED + size + b"\r\na\r\n0\r\n\r\n" for size in (b"-1", b"0x1", b"f" * 17, b"1 ", b"", b"1;a\nb")),
    CHUNKED + b"1\na\n0\n\n",
    CHUNKED + b"1\r\na\n0\r\n\r\n",
    CHUNKED + b"1\r\nabc\r\n0\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 500,  # a TLS hello
    bytes(range(256)) * 4,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /livez HTTP/1.2\r\n\r\n",
    b"FOO /predict HTTP/1.1\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\n\r\n",
    b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
]


def test_what_other_servers_may_read_otherwise_is_refused_and_nothing_behind_it_answered(edge: Service) -> None:
    with ThreadPoolExecutor(16) as pool:  # a body that is broken is waited for a little
        answers = pool.map(lambda sent: told(edge, sent + HIDDEN), MALFORMED)

        for sent, answered in zip(MALFORMED, answers, strict=True):
            assert (400, "framing") == refusal(answered), sent


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n" + b"X-Many: a\r\n" * 300 + b"\r\n",
        POST + b"a: b\r\n" * 10_000 + b"\r\n",
        POST + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    ],
    ids=["many", "very many", "long", "long, elsewhere"],
)
def test_floods_of_headers_are_431(edge: Service, sent: bytes) -> None:
    answered = told(edge, sent + STOP_READING)

    assert [431, 200] == statuses(answered)
    assert b'"code": "headers"' in answered


@pytest.mark.parametrize("length", [200_001, 2**63 - 1])
def test_an_absurd_length_is_413_at_once(edge: Service, length: int) -> None:
    with connected(edge, POST + b"Content-Length: %d\r\n\r\n" % length) as client:
        assert [413] == statuses(client.recv(65_536))


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_a_wrong_method_is_405_and_told_the_right_one(edge: Service, method: str) -> None:
    answered = told(edge, f"{method} /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())

    assert [405] == statuses(answered)
    assert b"\r\nallow: POST\r\n" in answered


def test_an_order_that_stalls_is_408_too(edge: Service) -> None:
    started = monotonic()

    assert (408, "slow_client") == refusal(told(edge, ORDER + b"Content-Length: 50\r\n\r\nx"))
    assert BODY_S - 0.1 < monotonic() - started < BODY_S + 5


def test_an_order_that_breaks_off_is_a_client_that_left(edge: Service) -> None:
    counted = {"route": "/models", "status": "499"}
    before = edge.sample("darkroom_requests_total", **counted), edge.sample("darkroom_client_disconnects_total")
    with connected(edge, ORDER + b"Content-Length: 50\r\n\r\nx"):
        pass
    assert b"" == told(edge, ORDER + b"Transfer-Encoding: chunked\r\n\r\nbroken\r\n")

    until(lambda: edge.sample("darkroom_requests_total", **counted) == before[0] + 2)
    assert before[1] + 2 == edge.sample("darkroom_client_disconnects_total")
