"""`darkroom COMMAND`: the same as `python -m training`, `service` or `benchmarks`; `predict` alone is here."""

import difflib
import os
import sys
from pathlib import Path

from service import __version__

HOUSE = Path(__file__).resolve().parents[1]  # where training/, service/ and models/ lie beside this package
TRAINING = ("train", "resume", "check", "compare", "evaluate", "export")
COMMANDS = (*TRAINING, "serve", "models", "predict", "bench")
HELP = """An image folder goes in, a served classifier comes out.

  darkroom train                                  the demo model: half a minute, no download
  darkroom check photos/                          what is wrong with a folder, before training on it
  darkroom train --data photos/ --arch resnet18 --weights DEFAULT --out artifacts/photos.pt
  darkroom serve --model artifacts/photos.pt      on http://127.0.0.1:8000
  darkroom predict holiday/ > answers.csv         a row for each image, from the service that runs

  train     an artifact from an image folder            resume    go on with a run that was stopped
  check     look at every picture of a folder           compare   hold a run against another
  evaluate  an artifact's accuracy on labelled images   export    an artifact from existing weights
  serve     an artifact over HTTP                       models    what a running service serves
  predict   files and folders, answered by a service    bench     measure the service, in a checkout

darkroom COMMAND --help tells a command's flags; darkroom --version tells the version.
train, resume, check, compare, evaluate and export are `python -m training`, serve and models `python -m service`,
bench `python -m benchmarks`.
"""


def main() -> int:
    """Run one command; the exit code, where another program does not take over."""
    match sys.argv[1:]:
        case [] | ["-h" | "--help", *_]:
            sys.stdout.write(HELP)
        case ["--version", *_]:
            print(f"darkroom {__version__}")
        case ["predict", *rest]:
            from darkroom import predict  # with requests, for which nothing else should wait

            return predict.main(rest)
        case ["serve", *rest]:
            pass_on("service", *rest)
        case ["models", *rest]:
            pass_on("service", "models", *rest)
        case ["bench", *rest]:
            if not Path("benchmarks", "__main__.py").exists():
                return fail("bench runs in a checkout of Darkroom, where benchmarks/ lies: change to its folder")
            pass_on("benchmarks", *rest)
        case [command, *rest] if command in TRAINING:
            pass_on("training", command, *rest)
        case [command, *_]:
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            return fail(f"no command {command!r}; {f'did you mean {near[0]}?' if near else 'see darkroom --help'}")
    return 0


def pass_on(module: str, *arguments: str) -> None:
    """Become `python -m module`: signals, exit code and child processes are its own.

    Where the house does not lie in the current folder, that folder may hold a `models` or `service` of somebody else's,
    which must not be taken for ours.
    """
    safe = [] if module == "benchmarks" or HOUSE == Path.cwd() else ["-P"]
    os.execv(sys.executable, [sys.executable, *safe, "-m", module, *arguments])


def fail(what: str) -> int:
    print(f"darkroom: {what}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
