"""Compiles what every request passes: python -m service.compile (`make` and the container image do).

mypyc makes C of the same sources, by the types that they have anyway. The service takes what was compiled where it fits
its sources and this Python, else the sources themselves: see `service/__init__.py` and decision 23.
"""

import os
import shutil
import sys
from pathlib import Path
from sysconfig import get_paths

from service import COMPILED

MODULES = (
    *("slots", "pending", "pace", "head", "versions", "metrics", "outlet", "channel"),
    *("call", "forms", "predict", "open_inference", "feedback"),
)
GROUP = "service.every_request"  # one library, so that calls between the modules are calls in C


def main() -> int:
    """Compile; one line and exit code 2 where something is missing that this needs."""
    compiler = os.environ.get("CC", "cc").split()[0]
    if not shutil.which(compiler):
        return refuse(f"no C compiler ({compiler})")
    if not (header := Path(get_paths()["include"], "Python.h")).is_file():
        return refuse(f"no {header}; Debian has it in python3-dev")
    from mypyc.build import mypycify  # which tests have, and no service
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    shutil.rmtree(COMPILED, ignore_errors=True)
    sources = [f"service/{name}.py" for name in MODULES]
    # As fast as with more optimisation, in three quarters of its time.
    made = mypycify(sources, opt_level="1", debug_level="0", group_name=GROUP)
    command = build_ext(Distribution({"ext_modules": made}))
    command.build_lib, command.build_temp = str(COMPILED.parent), "build"
    command.ensure_finalized()
    command.run()
    return 0


def refuse(what: str) -> int:
    """Say what is missing."""
    print(f"not compiled: {what}. The service runs as plain Python, a fifth slower.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
