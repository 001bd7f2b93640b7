"""`python -m training`: parses the command line, runs the command, turns errors into one line and an exit code."""

import os
import signal
import sys
from collections.abc import Sequence

from models.errors import ArtifactError
from models.interrupt import interrupt_by
from training.command_line import Check, Compare, Evaluate, Export, Resume, Train, parse
from training.errors import TrainingError


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    interrupt_by(signal.SIGINT)
    try:
        order = parse(arguments)
        # GNU OpenMP's threads spin while they wait. A short spin costs little on idle cores (an epoch of the demo 3.3 s
        # instead of 2.8) and pays when another program keeps one of the two busy (6.3 s instead of 9.8).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        # Importing torch takes seconds; a mistyped flag should not wait for it.
        from training import commands

        match order:
            case Train(seeds=1):
                commands.train(order)
            case Train():
                commands.train_seeds(order)
            case Evaluate():
                commands.evaluate(order)
            case Export():
                commands.export(order)
            case Resume():
                commands.resume(order)
            case Compare():
                commands.compare(order)
            case Check():
                return 1 if commands.check(order) else 0
    except (TrainingError, ArtifactError) as error:
        return fail(error, getattr(error, "exit_code", 2))
    except BrokenPipeError:  # who read the output has gone, as `| head` does; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except OSError as error:  # no space left, no permission: the system's own words name the file
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("stopped; nothing was published", 130)
    return 0


def fail(what: object, exit_code: int) -> int:
    print(f"error: {' '.join(str(what).split())}", file=sys.stderr, flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
