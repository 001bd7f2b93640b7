"""`POST /feedback {"request_id", "class"}`: what the image really was, counted as live accuracy.

Each HTTP process remembers the classes that it answered with last, and every process finds them by the request's id.
An image is counted once for each class that somebody says it is: the same again changes nothing, another one is a
correction, which is counted beside the first, as counters never fall, and takes a kept image along.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.album import Album
from service.call import Asked, Content, Endpoint, Shared
from service.errors import BadJson, BadParameter, ContentType, NotFound, TooLarge
from service.journal import REQUEST_ID
from service.memory import Memory, key_of
from service.metrics import FEEDBACK
from service.transport import Answer
from service.versions import Version

ROUTE = "/feedback"
ROWS = 1024  # of memory: about 65,536 images by each HTTP process, 13 s of 5,000 a second, 18 hours of one a second
BODY_BYTES = 4096
LISTED = 10  # classes that a refusal names
SHAPE = 'Send {"request_id": "...", "class": "..."}; of several images also "image", 0 for the first.'


@dataclass(slots=True)
class Judgement(Asked):
    """Somebody says that an image of a request, the `image`th of several, is of the class with index `label`."""

    request_id: str = ""
    image: int | None = None
    label: int = 0


class Feedback(Endpoint):
    """What one HTTP process remembers and is told."""

    route = ROUTE

    def __init__(self, shared: Shared) -> None:
        """Made in the main process, so that HTTP processes share the memory."""
        super().__init__(shared)
        processes = self.settings.http_processes
        self.predicted, self.judged = Memory(processes, ROWS), Memory(processes, ROWS)
        self.labels = {name: index for index, name in enumerate(self.manifest.classes)}
        self.album: Album | None = None

    def begin(self, process: int) -> None:
        """From now on this is that HTTP process."""
        self.predicted.begin(process)
        self.judged.begin(process)
        if self.album:
            self.album.thread.start()

    def close(self) -> None:
        """Write what is still to be kept."""
        if self.album:
            self.album.close()

    def remember(self, request_id: str, asked: Asked, answers: Sequence[Answer]) -> None:
        """Remember what the images of a request were predicted to be, and keep them if that was asked for."""
        several = len(asked.bodies) > 1
        coming = iter(answers)
        for number, body in enumerate(asked.bodies):
            if not isinstance(body, bytes) or not (best := next(coming).predictions):
                continue
            image = number if several else None
            self.predicted.put(key_of(request_id, image), best[0][0])
            if self.album and not asked.pixels:
                self.album.keep(request_id, image, body)

    def top_k(self, query: bytes) -> int:
        """Nothing is predicted."""
        return 0

    def asked(self, body: bytes, headers: Mapping[bytes, bytes], top_k: int) -> Judgement:
        """What somebody says."""
        # No page of another site can make a browser send this without asking first.
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise ContentType(f"Send application/json. {SHAPE}")
        if len(body) > BODY_BYTES:
            raise TooLarge(f"The body is larger than {BODY_BYTES} bytes.")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise BadJson("The body is not valid JSON.") from None
        if not isinstance(document, dict):
            raise BadJson(SHAPE)
        request_id, name, image = [document.get(member) for member in ("request_id", "class", "image")]
        counted = image is None or (type(image) is int and 0 <= image < self.settings.max_images)
        if not isinstance(request_id, str) or not isinstance(name, str) or not counted:
            raise BadJson(SHAPE)
        if not request_id.isascii() or not REQUEST_ID.fullmatch(request_id.encode()):
            raise BadParameter("request_id must be 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-'.")
        if name not in self.labels:
            told = ", ".join(list(self.labels)[:LISTED])
            more = f" and {len(self.labels) - LISTED} more" if len(self.labels) > LISTED else ""
            raise BadParameter(f"The model has no such class; it has {told}{more}.")
        return Judgement([], 0, request_id=request_id, image=image, label=self.labels[name])

    def answered(self, asked: Judgement, answers: Sequence[Answer], request_id: str, version: Version) -> Content:
        """Whether the prediction was right; see the module for what is counted."""
        key = key_of(asked.request_id, asked.image)
        predicted = self.predicted.find(key)
        if predicted is None:
            if asked.image is None and self.predicted.find(key_of(asked.request_id, 0)):
                raise BadParameter('The request had several images; say which by "image", 0 for the first.')
            raise NotFound("No such prediction is remembered: another id or image, or too many came since.")
        right = predicted[1] == asked.label
        before = self.judged.find(key)
        if before is None or before[0] < predicted[0]:  # of an earlier request with the same id
            before = None
        if before is None or before[1] != asked.label:
            self.judged.put(key, asked.label)
            self.metrics.add(FEEDBACK, "right" if right else "wrong")
            if self.album:
                self.album.label(asked.request_id, asked.image, asked.label, before and before[1])
        classes = self.manifest.classes
        told: dict[str, object] = {"request_id": asked.request_id}
        if asked.image is not None:
            told["image"] = asked.image
        told |= {"predicted": classes[predicted[1]], "class": classes[asked.label], "right": right}
        return Content(json.dumps(told).encode())
