"""What stops a command, from wherever it is found out: one line that says what was wrong, where, and what to do."""


class TrainingError(Exception):
    """Wrong flags, files or data, which the caller can put right; nothing was written."""

    exit_code = 2


class Diverged(TrainingError):
    """The loss is infinite or no number; nothing that follows would mean anything."""

    exit_code = 1
