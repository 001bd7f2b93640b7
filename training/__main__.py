"""`python -m training`: parses the command line, runs the command, turns errors into one line and an exit code."""

import os
import sys
from collections.abc import Sequence

from models.errors import ArtifactError
from training.command_line import Evaluate, Export, Train, parse
from training.errors import TrainingError


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    try:
        order, recipe = parse(arguments)
        # Threads that wait by spinning take the processor from whoever they wait for: on two cores shared with other
        # programs an epoch of the demo took 23 s instead of 5. OpenMP reads this once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Importing torch takes seconds; a mistyped flag should not wait for it.
        from training import commands

        match order:
            case Train():
                assert recipe is not None, "train always comes with a recipe"
                commands.train(order, recipe)
            case Evaluate():
                commands.evaluate(order)
            case Export():
                commands.export(order)
    except TrainingError as error:
        return fail(error, error.exit_code)
    except ArtifactError as error:
        return fail(error, 2)
    except OSError as error:  # no space left, no permission: the system's own words name the file
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("stopped; nothing was published", 130)
    return 0


def fail(what: object, exit_code: int) -> int:
    """Print the one line; the exit code."""
    print(f"error: {' '.join(str(what).split())}", file=sys.stderr, flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
