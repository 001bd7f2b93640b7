"""A client of the service: retries, time-outs, many images at a time.

    from darkroom.client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("photo.jpg").best)
        for answer in client.predict_many(paths):  # in order; an error in the place of an image that failed
            ...

It is for threads to share. Whatever goes wrong with a prediction is a `PredictionError`.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import uniform
from time import monotonic, sleep
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

TIMEOUT_S = 30.0
RETRIES = 5  # 3 s of waiting in all, where the service does not say how long
CONCURRENCY = 16
FIRST_WAIT_S, DOUBLINGS = 0.1, 6  # from one wait to the next, so at most 6.4 s
SPREAD = 1.25  # clients that were refused together should not come back together
AHEAD = 4  # images a thread that `predict_many` has taken and not yet given an answer for
LONGEST_TIMEOUT_MS = 60_000  # that the service takes
# Codes for what no service said.
UNREACHABLE, TIMEOUT, UNREADABLE, UNEXPECTED = "unreachable", "timeout", "unreadable", "unexpected"
# Nobody listens, or the connection was cut; of those, what will be so again.
PASSING = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
LASTING = (requests.exceptions.SSLError, requests.exceptions.ProxyError)

Image = str | Path | bytes | BinaryIO  # a path, or encoded bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class, by name and index, and its probability."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service says of one image: predictions, highest first, and which model made them.

    `unknown`: the first probability lies below the model's threshold; better not believe it.
    """

    predictions: tuple[Prediction, ...]
    unknown: bool
    model: str
    version: str
    request_id: str

    @property
    def best(self) -> Prediction:
        """The first prediction."""
        return self.predictions[0]


class PredictionError(Exception):
    """No answer. `code` is the service's, or `unreachable`, `timeout`, `unreadable` (file), `unexpected` (reply).

    `status` is None where nothing was replied; `retry_after` is in seconds, where the service asked for it.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.status = code, detail, status
        self.request_id, self.retry_after = request_id, retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may be answered later; asking twice changes nothing in the service."""
        return self.code == UNREACHABLE or self.status in (429, 503)


class Client:
    """Asks one service, over connections that are kept."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """`model` names one of several; `timeout` is in seconds for all attempts at one image together.

        `concurrency` is for `predict_many`.

        Raises:
            ValueError: the address or the key cannot be one.
        """
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"{url!r} is no address of a service; one is http://127.0.0.1:8000")
        if key is not None and not re.fullmatch("[!-~]+", key):
            raise ValueError("a key has visible ASCII characters only")
        self.url, self.timeout, self.retries, self.concurrency = url.rstrip("/"), timeout, retries, concurrency
        self.at = "" if model is None else f"/{quote(model, safe='')}"
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
        if key is not None:
            self.session.headers["X-API-Key"] = key  # Authorization would give way to a ~/.netrc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are idle."""
        self.session.close()

    def predict(self, image: Image, *, top_k: int | None = None) -> Answer:
        """Ask for the predictions of one image.

        Raises:
            PredictionError: there are none, after as many attempts as may help.
        """
        query = {} if top_k is None else {"top_k": top_k}
        document = self.ask("POST", f"/predict{self.at}", content(image), query)
        try:
            return answer_of(document)
        except (KeyError, TypeError, IndexError):
            raise PredictionError(UNEXPECTED, f"{self.url} answered something else than predictions", 200) from None

    def predict_many(self, images: Iterable[Image], *, top_k: int | None = None) -> Iterator[Answer | PredictionError]:
        """Each image's answer or its error, in order; images are taken from `images` as their turn comes."""
        pool = ThreadPoolExecutor(self.concurrency)
        waiting: deque[Future[Answer | PredictionError]] = deque()
        try:
            for image in images:
                waiting.append(pool.submit(self.settled, image, top_k))
                if len(waiting) == AHEAD * self.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def settled(self, image: Image, top_k: int | None = None) -> Answer | PredictionError:
        """What `predict` gives, or raises."""
        try:
            return self.predict(image, top_k=top_k)
        except PredictionError as error:
            return error

    def health(self) -> dict[str, Any]:
        """`GET /health` of a service that is ready: model, device, dtype."""
        return self.ask("GET", "/health")

    def info(self) -> dict[str, Any]:
        """`GET /info`: the manifest with all classes, limits, version."""
        return self.ask("GET", f"/info{self.at}")

    def ask(
        self, method: str, path: str, body: bytes | None = None, query: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """The document that a route answers with, after as many attempts as may help.

        Raises:
            PredictionError: it does not, or not in time.
        """
        deadline = monotonic() + self.timeout
        request = {"method": method, "url": self.url + path, "data": body, "params": query}
        request_id = uuid4().hex
        tried = 0
        while True:
            try:
                return self.attempt(request, request_id, deadline - monotonic())
            except PredictionError as error:
                wait = max(error.retry_after or 0, FIRST_WAIT_S * 2 ** min(tried, DOUBLINGS)) * uniform(1, SPREAD)
                if not error.passing or tried >= self.retries or monotonic() + wait >= deadline:
                    raise
            sleep(wait)
            tried += 1

    def attempt(self, request: Mapping[str, Any], request_id: str, left: float) -> dict[str, Any]:
        """Ask once, for `left` seconds."""
        if left <= 0:  # a wait may take longer than it should
            raise PredictionError(TIMEOUT, f"no answer within {self.timeout:g} s", None, request_id)
        within = str(max(1, min(int(left * 1000), LONGEST_TIMEOUT_MS)))
        headers = {"X-Request-ID": request_id, "X-Timeout-Ms": within}
        try:
            reply = self.session.request(**request, headers=headers, timeout=left, allow_redirects=False)
            if reply.status_code == 200:
                document: dict[str, Any] = reply.json()
                return document
        except requests.ReadTimeout:
            raise PredictionError(TIMEOUT, f"no answer within {self.timeout:g} s", None, request_id) from None
        except (requests.RequestException, HTTPError) as error:  # of an address some are not wrapped
            if isinstance(error, PASSING) and not isinstance(error, LASTING):
                advice = "start one with: darkroom serve --model FILE, or give another address"
                detail = f"no service is reached at {self.url}; {advice}"
                raise PredictionError(UNREACHABLE, detail, None, request_id) from error
            detail = f"{self.url} does not answer as Darkroom does ({type(error).__name__})"
            raise PredictionError(UNEXPECTED, detail, None, request_id) from error
        raise refusal(reply, request_id)


def content(image: Image) -> bytes:
    """The encoded image.

    Raises:
        PredictionError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes() if isinstance(image, str | Path) else image.read()
    except (OSError, ValueError) as error:  # of a name that holds a zero byte
        raise PredictionError(UNREADABLE, getattr(error, "strerror", None) or str(error)) from error


def answer_of(document: Mapping[str, Any]) -> Answer:
    """The answer as an object."""
    predictions = [Prediction(one["class"], one["index"], one["probability"]) for one in document["predictions"]]
    model, unknown = document["model"], document.get("unknown", False)
    return Answer(tuple(predictions), unknown, model["name"], model["version"], document["request_id"])


def refusal(reply: requests.Response, request_id: str) -> PredictionError:
    """The error that a reply without predictions tells."""
    status, after = reply.status_code, retry_after(reply)
    try:
        problem = reply.json()
        return PredictionError(problem["code"], problem["detail"], status, problem["request_id"], after)
    except (ValueError, KeyError, TypeError):
        detail = f"{reply.url} answered {status} and not as Darkroom does; is it there?"
        return PredictionError(UNEXPECTED, detail, status, request_id, after)


def retry_after(reply: requests.Response) -> float | None:
    """Seconds that the service asks to wait for, given as such or as a date."""
    try:
        return Retry().parse_retry_after(reply.headers["Retry-After"])
    except (KeyError, InvalidHeader):
        return None
