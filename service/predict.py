"""`POST /predict`: images in whatever form they came, predictions by class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from service.call import Asked, Content, Endpoint, Shared, whole_number
from service.errors import BY_CODE, AnyError, BadParameter, Rejected, problem
from service.forms import images
from service.transport import Answer
from service.versions import Version

ROUTE = "/predict"
DEFAULT_TOP_K = 5
QUERY_FIELDS = 100


@dataclass(slots=True)
class Images(Asked):
    """`several` asks for `results`."""

    several: bool = False


class Predict(Endpoint):
    """The house's own protocol."""

    route = ROUTE

    def __init__(self, shared: Shared) -> None:
        """What is the same in every reply is written once."""
        super().__init__(shared)
        self.classes = [
            f'{{"class": {json.dumps(name)}, "index": {index}, "probability": '
            for index, name in enumerate(self.manifest.classes)
        ]

    def top_k(self, query: bytes) -> int:
        """As the query says."""
        return top_k_of(query, len(self.classes))

    def asked(self, body: bytes, headers: Mapping[bytes, bytes], top_k: int) -> Images:
        """The images of a body of any of the forms."""
        kind = headers.get(b"content-type", b"").decode("latin-1")
        found = images(body, kind, self.settings.max_images)
        return Images(found.bodies, top_k, several=found.several)

    def answered(self, asked: Images, answers: Sequence[Answer], request_id: str, version: Version) -> Content:
        """Predictions, or of several images the results; without any that succeeded the first error's problem."""
        unknown_below = version.manifest.unknown_below
        success = f'{{"request_id": "{request_id}", "model": {version.told}'
        if not asked.several:
            (answer,) = answers
            if answer.code:
                raise BY_CODE[answer.code](answer.detail)
            return Content(f"{success}, {self.predictions(answer, unknown_below)}}}".encode())
        replies = in_order(asked.bodies, answers)
        errors = [reply for reply in replies if not isinstance(reply, Answer)]
        for error in errors:
            self.metrics.reject(error)
        results = ", ".join(
            f"{{{self.predictions(reply, unknown_below)}}}"
            if isinstance(reply, Answer)
            else json.dumps({"error": problem(reply, request_id)})
            for reply in replies
        )
        if len(errors) < len(replies):
            return Content(f'{success}, "results": [{results}]}}'.encode())
        document = f'{json.dumps(problem(errors[0], request_id))[:-1]}, "results": [{results}]}}'
        return Content(document.encode(), "application/problem+json", error=errors[0])

    def predictions(self, answer: Answer, unknown_below: float) -> str:
        """Classes by name, highest first, as a member of a JSON object; the worker sends finite numbers only."""
        # Nine digits tell every float32 from the others.
        told = f'"predictions": [{", ".join([f"{self.classes[i]}{p:.9}}}" for i, p in answer.predictions])}]'
        return f'{told}, "unknown": true' if answer.predictions[0][1] < unknown_below else told


def top_k_of(query: bytes, num_classes: int) -> int:
    """How many predictions the query asks for: `min(5, K)` by default, at most K."""
    if not query:
        return min(DEFAULT_TOP_K, num_classes)
    try:
        given = parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS).get("top_k")
    except ValueError:
        raise BadParameter(f"The query has more than {QUERY_FIELDS} fields.") from None
    if given is None:
        return min(DEFAULT_TOP_K, num_classes)
    return min(whole_number("top_k", given[-1]), num_classes)


def in_order(bodies: Sequence[bytes | Rejected], answers: Sequence[Answer]) -> list[Answer | AnyError]:
    """Every image's answer or error, in the request's order."""
    coming = iter(answers)
    return [settled(next(coming)) if isinstance(image, bytes) else image for image in bodies]


def settled(answer: Answer) -> Answer | AnyError:
    """The answer, or the error that it tells of."""
    return BY_CODE[answer.code](answer.detail) if answer.code else answer
