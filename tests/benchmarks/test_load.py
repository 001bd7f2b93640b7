import asyncio
import json
import select
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.load import Act, Connection, Image, schedule
from benchmarks.outcomes import REQUEST_ID, Report

BODY = b"picture"
RIGHT = (3, 0.75)
Answer = Callable[[int, str], Awaitable[bytes | None]]  # by request number and id; None closes the connection


def reply(identity: str, index: int = RIGHT[0], status: str = "200 OK") -> bytes:
    body = json.dumps({"predictions": [{"index": index, "probability": RIGHT[1]}]}).encode()
    return f"HTTP/1.1 {status}\r\nx-request-id: {identity}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A small real HTTP server on a thread of its own; its URL."""
    loop, numbers = asyncio.new_event_loop(), iter(range(1_000_000))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(len(BODY))
                identity = REQUEST_ID.search(head)
                told = await answer(next(numbers), identity[1].decode() if identity else "")
                if told is None:
                    break
                writer.write(told)
        except (asyncio.IncompleteReadError, ConnectionError):  # the tool has finished
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await stop.wait()
            if open_still := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(open_still, timeout=10)

    ports: list[int] = []
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{ports[0]}/predict"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def drive(answer: Answer, *, rate: float = 100, seconds: float = 0.5, connections: int = 4) -> Report:
    with answering(answer) as url:
        return load.run(url, [Image(BODY, RIGHT)], rate=rate, seconds=seconds, connections=connections).report


async def right(_: int, identity: str) -> bytes:
    return reply(identity)


def test_the_schedule_is_even_and_known_before_the_start() -> None:
    assert [0.0, 0.25, 0.5, 0.75] == schedule(4, 1)


def test_arrivals_by_poissons_law_are_the_same_for_the_same_seed_and_have_the_rate() -> None:
    times = schedule(1000, 10, seed=1)

    assert schedule(1000, 10, seed=1) == times != schedule(1000, 10, seed=2)
    assert times == sorted(times)
    assert 9_500 < len(times) < 10_500


def test_answers_as_expected_are_a_clean_run() -> None:
    report = drive(right)

    assert report.clean
    assert (50, 50, 50, {"200": 50}) == (report.scheduled, report.sent, report.answered, report.statuses)


def test_a_stall_is_charged_to_all_who_would_have_come_meanwhile() -> None:
    async def stalling(number: int, identity: str) -> bytes:
        if number == 10:
            await asyncio.sleep(0.3)
        return reply(identity)

    report = drive(stalling, connections=1)

    # Of 50 requests 10 ms apart, the tenth waits 300 ms, the next 290, and so on: thirty wait, not one.
    assert report.clean
    assert 290 <= report.p99_ms
    assert 4500 / 50 * 0.8 <= report.mean_ms


def test_a_request_whose_connection_is_closed_is_lost_and_the_others_go_on() -> None:
    async def closing(number: int, identity: str) -> bytes | None:
        return None if number == 5 else reply(identity)

    report = drive(closing)

    assert (50, 49, 1) == (report.sent, report.answered, report.lost)
    assert not report.clean


def test_a_request_that_the_server_did_not_read_before_it_closed_is_not_lost() -> None:
    def close_unread() -> None:
        with listener.accept()[0] as connection:
            connection.recv(1, socket.MSG_PEEK)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=close_unread)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
        report = load.run(url, [Image(BODY)], rate=1, seconds=1, connections=1).report
        thread.join(10)

    assert (1, 0, 0, 1) == (report.sent, report.accepted, report.lost, report.unread)


def test_a_request_that_crosses_the_servers_close_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_just_after(connection: Connection) -> bool:
            """Look, then let the server close it."""
            listener.accept()[0].close()
            select.select([connection.link], [], [], 10)
            return False

        monkeypatch.setattr(Connection, "closed", close_just_after)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
        report = load.run(url, [Image(BODY)], rate=1, seconds=1, connections=1).report

    assert (1, 0, 0, 1) == (report.sent, report.accepted, report.lost, report.unread)


def test_an_answer_other_than_expected_is_wrong() -> None:
    async def mistaken(number: int, identity: str) -> bytes:
        return reply(identity, index=4 if number == 5 else RIGHT[0])

    report = drive(mistaken)

    assert (50, 1) == (report.answered, report.wrong)
    assert not report.clean


def test_an_answer_to_another_request_is_misnamed() -> None:
    async def confused(number: int, identity: str) -> bytes:
        return reply("load-0" if number == 5 else identity)

    report = drive(confused)

    assert 1 == report.misnamed
    assert not report.clean


def test_other_statuses_are_counted_and_not_clean() -> None:
    async def refusing(number: int, identity: str) -> bytes:
        return reply(identity, status="429 Too Many Requests" if number == 5 else "200 OK")

    report = drive(refusing)

    assert {"200": 49, "429": 1} == report.statuses
    assert not report.clean


def test_a_connection_that_the_server_ends_with_its_answer_is_replaced() -> None:
    async def ending(number: int, identity: str) -> bytes:
        return reply(identity).replace(b"content-length", b"connection: close\r\ncontent-length")

    assert drive(ending, connections=2).clean


def test_what_is_done_to_the_server_is_marked_when_it_happens() -> None:
    gone = asyncio.Event()

    async def ending(_: int, identity: str) -> bytes | None:
        return None if gone.is_set() else reply(identity)

    def strike(mark: Callable[[], None]) -> None:
        gone.set()
        mark()

    with answering(ending) as url:
        course = load.run(
            url, [Image(BODY, RIGHT)], rate=100, seconds=0.5, connections=4, acts=[Act(0.2, "end", strike)]
        )

    (mark,) = course.marks
    assert "end" == mark.name
    assert mark.at > 0.19, "an event loop keeps its times to a millisecond"
    assert {True} == {outcome.right for outcome in course.outcomes if outcome.finished and outcome.finished < mark.at}
    assert {False} == {outcome.right for outcome in course.outcomes if outcome.due > mark.at}
    assert 50 == course.report.sent > course.report.answered
    assert course.report.lost == 50 - course.report.answered


def test_several_rates_with_a_fault_leave_tables_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    image = tmp_path / "image"
    image.write_bytes(BODY)
    with answering(right) as url:
        flags = ["--url", url, "--image", str(image), "--rate", "50", "100", "--seconds", "0.4", "--json"]
        fault = ["--fault", f"KILL:{bystander.pid}:0.1", "--out", str(tmp_path)]

        assert 0 == load.main([*flags, *fault])

    assert [20, 40] == [json.loads(line)["answered"] for line in capsys.readouterr().out.splitlines()]
    assert -9 == bystander.wait()
    assert {"load.json", "load.md", "load.svg"} < {path.name for path in tmp_path.iterdir()}
    assert ["SIGKILL"] == [
        mark["name"] for mark in json.loads((tmp_path / "load.json").read_text())["rows"][0]["marks"]
    ]


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(right) as url:
        pass
    arguments = ["--url", url, "--rate", "10", "--seconds", "1", "--image", __file__]

    assert 2 == load.main(arguments)
    assert f"error: nothing answers at {url}\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [["--rate", "0"], ["--seconds", "nan"], ["--connections", "0"], ["--image", "no"], ["--fault", "KILL:x:1"], []],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--url", "http://127.0.0.1:9/predict", *(["--rate", "10", "--image", __file__] if flags else []), *flags]

    assert 2 == load.main(given)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert 1 == error.count("\n")
