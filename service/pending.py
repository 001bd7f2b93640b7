"""The images of one request on their way: who waits for their answers, and which version of the model gives them."""

from collections.abc import Callable, Sequence

from service.errors import ServiceError
from service.transport import NO_UID, Answer
from service.versions import Version

NONE = Answer(NO_UID, [])


class Pending:
    """The images of one request on their way, and the answers that have come."""

    def __init__(
        self,
        count: int,
        version: Version,
        deadline: float,
        done: Callable[[Sequence[Answer]], None],
        failed: Callable[[ServiceError], None],
    ) -> None:
        """`done` gets all answers in order, all from one version, or `failed` why not all come in time; never both."""
        self.version = version
        self.named = False  # the request asks for this version and no other
        self.twin: Pending | None = None  # the same images, of the other version
        self.answers: list[Answer] = [NONE] * count
        self.uids = [NO_UID] * count
        self.missing = count
        self.deadline = deadline
        self.done: Callable[[Sequence[Answer]], None] | None = done
        self.failed: Callable[[ServiceError], None] | None = failed

    def put(self, position: int, answer: Answer) -> None:
        """One answer has come."""
        self.answers[position] = answer
        self.missing -= 1
        if not self.missing and self.done is not None:
            self.done(self.answers)

    def fail(self, error: ServiceError) -> None:
        """Wait no longer."""
        failed = self.failed
        self.forget()
        if failed is not None:
            failed(error)

    def forget(self) -> None:
        """Nobody waits any more."""
        self.done = self.failed = None

    @property
    def awaited(self) -> bool:
        """Whether somebody still waits."""
        return self.done is not None
