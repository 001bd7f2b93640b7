"""Hostile input, all of it through one service: the documented answer, neighbours unharmed, nothing left behind."""

import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.errors import BY_CODE
from tests import artifacts, costly, running
from tests.encodings import encodings, of_few_colours, of_grey
from tests.pictures import noise
from tests.running import Service
from tests.service import hostile
from tests.service.hostile import Case

pytestmark = pytest.mark.slow

IN_FLIGHT = 24
LEAKS = re.compile(r'Traceback|File "|site-packages|/(work|tmp|home|usr|etc|proc)/|\.py\b|\b0x[0-9a-f]{6,}')
GROWTH = 64 << 20  # bytes
LARGEST = 10 << 20  # body, by default
SERIES = 500  # and one a class


@pytest.fixture(scope="module")
def target(model: Path) -> Iterator[Service]:
    # A delay, so that good and bad images are in one batch; limits as by default.
    with running.serving(model, "--max-delay-ms", "20") as service:
        yield service


@dataclass(frozen=True)
class State:
    """What a service is like between requests: processes with their memory in bytes, and its counters."""

    memory: dict[int, int]
    answered: Counter[str]
    rejected: Counter[str]
    in_flight: float
    waiting: float


def memory(pid: int) -> int:
    """What is a process's own of the memory that it holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(size) << 10 for size in re.findall(r"^Rss(?:Anon|File):\s+(\d+) kB", status, re.MULTILINE))


def state(service: Service) -> State:
    text = service.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def values(name: str, label: str, **labels: str) -> Counter[str]:
        chosen = [sample for sample in samples if sample.name == name and labels.items() <= sample.labels.items()]
        return Counter({sample.labels[label]: int(sample.value) for sample in chosen})

    (in_flight,) = (sample.value for sample in samples if sample.name == "darkroom_requests_in_flight")
    (waiting,) = (sample.value for sample in samples if sample.name == "darkroom_queue_depth")
    return State(
        {pid: memory(pid) for pid in service.children()},
        values("darkroom_requests_total", "status", route="/predict"),
        values("darkroom_images_rejected_total", "reason"),
        in_flight,
        waiting,
    )


def post(service: Service, case: Case) -> requests.Response:
    headers = {"content-type": case.kind.encode("latin-1")} if case.kind else {}
    return requests.post(f"{service.url}/predict", data=case.body, headers=headers, timeout=60)


def post_all(service: Service, cases: Sequence[Case]) -> list[requests.Response]:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(lambda case: post(service, case), cases))


def found(reply: requests.Response) -> tuple[int, str]:
    """Status and code."""
    return reply.status_code, "" if reply.status_code == 200 else reply.json()["code"]


def check_unharmed(service: Service, before: State) -> State:
    """It serves on with the same processes, has nothing under way and no more memory."""
    after = state(service)

    assert 200 == service.get("/health").status_code
    assert before.memory.keys() == after.memory.keys()
    assert (0, 0) == (after.in_flight, after.waiting)
    growth = {pid: after.memory[pid] - before.memory[pid] for pid in before.memory}
    assert max(growth.values()) < GROWTH, growth
    return after


def test_all_of_it_at_once_is_answered_as_documented_and_hurts_nobody(target: Service) -> None:
    hostile_ones = hostile.battery() | hostile.lies()
    good = [Case(noise(seed, (64, 48)), "", 200, "") for seed in range(20)]
    expected = [post(target, case).json()["predictions"] for case in good]
    post_all(target, good * 5)
    before = state(target)

    named = [*hostile_ones.items(), *(("good", good[index % 20]) for index in range(len(hostile_ones)))]
    random.Random(0).shuffle(named)
    replies = post_all(target, [case for _, case in named])

    wrong = [
        (name, found(reply), (case.status, case.code))
        for (name, case), reply in zip(named, replies, strict=True)
        if found(reply) != (case.status, case.code)
    ]
    assert [] == wrong
    for (name, case), reply in zip(named, replies, strict=True):
        assert not LEAKS.search(reply.text), reply.text
        if case.status != 200:
            assert "application/problem+json" == reply.headers["content-type"]
        if name == "good":
            assert close(expected[good.index(case)]) == close(reply.json()["predictions"])
    after = check_unharmed(target, before)
    assert Counter(str(case.status) for _, case in named) == after.answered - before.answered
    assert Counter(case.code for _, case in named if case.code) == after.rejected - before.rejected


def test_all_of_it_by_the_open_inference_protocol_is_answered_the_same(target: Service) -> None:
    cases = [case for case in (hostile.battery() | hostile.lies()).values() if case.body]
    # Some are as large as fits a body, without the JSON before it.
    encoded = [
        case for case in cases if (case.kind.startswith("image/") or not case.kind) and len(case.body) < LARGEST - 1000
    ]
    before = state(target)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        as_tensors = list(pool.map(lambda case: infer(target, *as_tensor(case.body)), encoded))
        as_requests = list(pool.map(lambda case: infer(target, case.body, None), cases))

    assert len(encoded) > 50
    wrong = [
        (case.body[:40], found(reply), case.status, case.code)
        for case, reply in zip(encoded, as_tensors, strict=True)
        if found(reply) != (case.status, case.code)
    ]
    assert [] == wrong
    assert {reply.status_code for reply in as_requests} <= {400, 413}
    for reply in (*as_tensors, *as_requests):
        assert not LEAKS.search(reply.text), reply.text
    check_unharmed(target, before)


def as_tensor(body: bytes) -> tuple[bytes, int]:
    """An inference request for one encoded image, and where its tensor begins."""
    tensor = len(body).to_bytes(4, "little") + body
    given = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    head = json.dumps({"inputs": [given]}).encode()
    return head + tensor, len(head)


def infer(service: Service, body: bytes, length: int | None) -> requests.Response:
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    return requests.post(f"{service.url}/v2/models/test/infer", data=body, headers=headers, timeout=60)


def close(predictions: list[Mapping[str, float]]) -> list[tuple[float, float]]:
    """What must be equal when an image is predicted in another batch."""
    return [(prediction["index"], round(prediction["probability"], 3)) for prediction in predictions]


def test_no_address_in_a_body_is_ever_asked(target: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>'.encode()
        texts = {"image": address}, {"images": [address]}, {"image": f"data:{address},"}, {"url": address}
        cases = [Case(json.dumps(text).encode(), hostile.JSON, 0, "") for text in texts]
        cases += [Case(body, "", 0, "") for body in (address.encode(), svg)]
        cases.append(Case(hostile.form(hostile.part(address.encode())), hostile.FORM, 0, ""))
        statuses = {reply.status_code for reply in post_all(target, cases)}
        listener.setblocking(False)

        assert {400, 415} == statuses
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_metrics_have_few_series_and_no_word_of_the_clients(target: Service) -> None:
    word = "hostile-word-of-a-client"
    for path in (f"/{word}", f"/predict?{word}=1", f"/predict/{word}"):
        requests.post(target.url + path, data=b"x", headers={word: word, "x-request-id": word}, timeout=60)
    requests.request(word.upper(), target.url + "/predict", timeout=60)
    text = target.get("/metrics").text

    assert word not in text.lower()
    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(series) < SERIES + len(artifacts.CLASSES)
    codes = re.findall(r'reason="([^"]*)"', text)
    assert set(codes) <= BY_CODE.keys()


def test_600_mutants_are_answered_by_name(target: Service) -> None:
    choose = random.Random(0)
    seeds = [*hostile.SEEDS.values()]
    mutants = []
    for index in range(600):
        mutant = bytearray(seeds[index % len(seeds)])
        for _ in range(choose.randint(1, 64)):
            mutant[choose.randrange(len(mutant))] = choose.randrange(256)
        mutants.append(Case(bytes(mutant), "", 0, ""))
    before = state(target)
    replies = post_all(target, mutants)

    assert 6 == len(seeds)
    assert {200, 415, 422} >= {reply.status_code for reply in replies}
    after = check_unharmed(target, before)
    assert 600 == sum((after.answered - before.answered).values())
    assert 600 == sum((after.rejected - before.rejected).values()) + (after.answered - before.answered)["200"]


def probabilities(reply: requests.Response) -> list[float]:
    """All classes' probabilities in the order of the classes."""
    by_index = {prediction["index"]: prediction["probability"] for prediction in running.predictions(reply)}
    return [by_index[index] for index in sorted(by_index)]


def differences(service: Service, ways: Iterator[tuple[str, bytes]]) -> dict[str, object]:
    """The ways whose answer is not the first one's: another class, or a probability off by 0.05 or more."""
    named = list(ways)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        replies = pool.map(lambda item: service.post(item[1], "/predict?top_k=10"), named)
        expected, *others = map(probabilities, replies)
    best = expected.index(max(expected))
    return {
        name: (expected, found)
        for (name, _), found in zip(named[1:], others, strict=True)
        if found.index(max(found)) != best or max(abs(a - b) for a, b in zip(expected, found, strict=True)) >= 0.05
    }


def sample(seed: int) -> Image.Image:
    """A soft picture; each of other proportions."""
    field = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(field).resize((90 + 7 * seed, 120 - 5 * seed), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("seed", range(4))
def test_one_picture_has_one_answer_however_it_is_stored(target: Service, seed: int) -> None:
    picture = sample(seed)

    assert {} == differences(target, encodings(picture))
    assert {} == differences(target, of_few_colours(picture.quantize(256)))
    assert {} == differences(target, of_grey(picture.convert("L")))


@pytest.mark.parametrize("number", [3, 40, 77])
def test_one_photo_has_one_answer_however_it_is_stored(target: Service, test_data: Path, number: int) -> None:
    with Image.open(sorted((test_data / "photos").glob("*.JPEG"))[number]) as photo:
        picture = photo.convert("RGB")

    assert {} == differences(target, encodings(picture))
    assert {} == differences(target, of_few_colours(picture.quantize(256)))
    assert {} == differences(target, of_grey(picture.convert("L")))


bodies = (
    st.binary(max_size=300)
    | st.sampled_from(list(hostile.SEEDS.values()))
    | st.tuples(st.sampled_from(list(hostile.SEEDS.values())), st.binary(max_size=40), st.integers(0, 200)).map(
        lambda drawn: hostile.patched(drawn[0], drawn[2], drawn[1])
    )
)
names = st.sampled_from(["file", "note", ""]) | st.text(max_size=20)
parts = st.builds(
    hostile.part,
    bodies,
    names.map(lambda name: f'form-data; name="{name}"') | st.text(max_size=30),
    st.sampled_from([b"", b"Content-Type: image/png\r\n"]) | st.binary(max_size=30),
)
documents = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | bodies.map(hostile.texted),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.sampled_from(["image", "images", "x"]), inside, max_size=3)
    ),
    max_leaves=8,
)
types = st.sampled_from(["", "image/png", hostile.JSON, hostile.FORM, "multipart/form-data"]) | st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=30
)
anything = (
    st.tuples(bodies, types)
    | st.tuples(st.lists(parts, max_size=4).map(lambda some: hostile.form(*some)), st.just(hostile.FORM))
    | st.tuples(documents.map(lambda document: json.dumps(document).encode()), st.just(hostile.JSON))
)


@hypothesis.settings(max_examples=30)
@given(st.lists(anything, min_size=8, max_size=8))
def test_whatever_is_sent_is_answered_or_refused_and_never_our_fault(
    target: Service, sent: list[tuple[bytes, str]]
) -> None:
    replies = post_all(target, [Case(body, kind, 0, "") for body, kind in sent])

    for reply in replies:
        assert {200, 400, 413, 415, 422} >= {reply.status_code}, reply.text
        assert not LEAKS.search(reply.text), reply.text
        assert reply.status_code == 200 or reply.json()["code"] in BY_CODE


@pytest.fixture(scope="module")
def openapi(target: Service) -> BaseSchema:
    """Our own OpenAPI document, as schemathesis reads it."""
    return schemathesis.openapi.from_url(f"{target.url}/openapi.json")


# Bytes of any kind are what it says of an image, and most are none; a client that asks for a millisecond gets a 504.
NOT_SAID = [positive_data_acceptance, negative_data_rejection, not_a_server_error]


@hypothesis.settings(max_examples=60)
@given(st.data(), st.sampled_from(schemathesis.GenerationMode))
def test_what_openapi_says_of_requests_and_replies_holds(
    openapi: BaseSchema, data: st.DataObject, mode: schemathesis.GenerationMode
) -> None:
    operations = [found.ok() for found in openapi.get_all_operations() if isinstance(found, Ok)]
    operation = data.draw(st.sampled_from([*operations, *[openapi["/predict"]["POST"]] * 9]))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    reply = case.call_and_validate(excluded_checks=NOT_SAID)

    assert reply.status_code != 500
    assert not LEAKS.search(reply.text) or operation.path in ("/docs", "/openapi.json"), reply.text


def test_many_large_pictures_at_once_do_not_add_up_their_memory(model: Path) -> None:
    body = costly.png(costly.SIDE, costly.SIDE, 6, 8)
    with running.serving(model, "--capacity", "5", "--timeout-ms", "60000") as service:
        service.post(noise())
        before = {pid: memory(pid) for pid in service.children()}
        statuses = Counter(reply.status_code for reply in service.post_together([body] * 32))

        assert {200, 429} == statuses.keys()
        assert statuses[200] >= 5
        peaks = {pid: most_memory(pid) for pid in before}
        assert max(peaks.values()) < 7 << 28, peaks  # 1.75 of a container's 2 GiB
        assert max(memory(pid) - before[pid] for pid in before) < 2 * GROWTH  # it is given back, whatever stays warm


def most_memory(pid: int) -> int:
    """The most that a process ever held, in bytes."""
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(peak) << 10
