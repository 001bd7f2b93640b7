import http.client
from pathlib import Path

import pytest

from benchmarks import servers
from benchmarks.contenders import STARLETTE
from benchmarks.errors import BenchmarkError
from benchmarks.servers import Contender, Server

NO_MODEL = Path("none.pt")


def answers(server: Server, within_s: float) -> bool:
    """Whether the server answers in time."""
    connection = http.client.HTTPConnection(server.url.split("/")[2], timeout=within_s)
    try:
        connection.request("POST", "/predict", b"body")
        return connection.getresponse().status == 200
    except TimeoutError:
        return False
    finally:
        connection.close()


@pytest.mark.usefixtures("wrk")
def test_a_paused_server_answers_only_while_it_is_awake_and_is_gone_at_the_end() -> None:
    with servers.paused(STARLETTE, NO_MODEL, b"body") as server:
        with server.awake():
            assert answers(server, within_s=10)
        assert not answers(server, within_s=0.2)
        assert 0.0 == server.idle_percent(0.1)

    assert {} == server.stats()


def test_cpu_and_memory_of_a_server_are_those_of_all_its_processes() -> None:
    twice = Contender("two processes", ["-c", f"import os; os.fork(); {FORKED}", "{port}"])
    with servers.running(twice, NO_MODEL, b"body") as server:
        kinds = [kind for kind, _ in server.memory()]

        assert ["main", "forked"] == kinds
        assert all(mib > 1 for _, mib in server.memory())
        assert 0 < server.cpu_seconds()


# Who comes second finds the port taken, and waits for its end.
FORKED = """
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200); self.end_headers()
try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
except OSError:
    signal.pause()
""".strip()


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    broken = Contender("broken", ["-c", "raise SystemExit('no luck')"])

    with pytest.raises(BenchmarkError, match=r"broken did not start: no luck"), servers.running(broken, NO_MODEL, b""):
        pass


def test_a_paused_server_that_was_killed_is_told_when_its_turn_comes() -> None:
    with servers.running(STARLETTE, NO_MODEL, b"body") as server:
        server.process.kill()
        server.process.wait()

        with pytest.raises(BenchmarkError, match=r"ended with exit code -9"), server.awake():
            pass
