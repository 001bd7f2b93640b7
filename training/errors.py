"""What stops a command: one line that says what was wrong, where, and what to do.

TrainingError     wrong flags, files or data; exit code 2, nothing written
├── Diverged      the loss is no longer a number; exit code 1
└── Interrupted   Ctrl-C before anything was worth keeping; exit code 130
"""

from typing import ClassVar


class TrainingError(Exception):
    """Something that the caller can put right; the text is the one line to print."""

    exit_code: ClassVar[int] = 2


class Diverged(TrainingError):
    """The loss is infinite or no number; nothing that follows would mean anything."""

    exit_code = 1


class Interrupted(TrainingError):
    """Ctrl-C before the first epoch ended."""

    exit_code = 130  # 128 + SIGINT, as shells report it
