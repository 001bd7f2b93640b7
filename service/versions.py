"""Which version of the model a request goes to, as an HTTP process sees it on the board."""

import json
from dataclasses import dataclass

from models.manifest import Manifest
from service.board import SIDES, Board


@dataclass(frozen=True)
class Version:
    """A version whose workers are on `side`; `told` is how replies name it, as JSON."""

    side: int
    written: int  # how often the side has had another
    manifest: Manifest
    told: str

    @classmethod
    def read(cls, board: Board, side: int) -> "Version":
        """The version that a side has now."""
        written = board.written(side)
        manifest = Manifest.model_validate_json(board.document(side))
        told = json.dumps({"name": manifest.name, "version": manifest.version})
        return cls(side, written, manifest, told)


class Versions:
    """The versions of both sides, read again when the board has others."""

    def __init__(self, board: Board) -> None:
        """Nothing is read yet."""
        self.board = board
        self.known: list[Version | None] = [None] * SIDES
        self.turn = 0.0  # how much of a request the candidate is still to answer

    def on(self, side: int) -> Version:
        """The version that a side has."""
        version = self.known[side]
        if version is None or version.written != self.board.written(side):
            version = self.known[side] = Version.read(self.board, side)
        return version

    @property
    def serving(self) -> Version:
        """The version that answers."""
        return self.on(self.board.serving)

    def choose(self) -> Version:
        """The version for the next request: evenly, the candidate gets its share."""
        share = self.board.share
        if share:
            self.turn += share
            if self.turn >= 1:
                self.turn -= 1
                return self.on(1 - self.board.serving)
        return self.serving

    def there(self) -> list[Version]:
        """The versions that can be asked, first the one that answers."""
        serving = self.board.serving
        return [self.on(side) for side in (serving, 1 - serving) if self.board.opened(side)]

    def names(self) -> list[str]:
        """What they are called."""
        return [version.manifest.version for version in self.there()]

    def named(self, name: str) -> Version | None:
        """The one that is called so."""
        return next((version for version in self.there() if version.manifest.version == name), None)
