"""Compiles what every request passes: python -m service.compile (`make` and the container image do).

mypyc makes C of the same sources, by the types that they have anyway. The service takes what was compiled of just the
sources that lie here, else those themselves: see `service/__init__.py` and decision 23.
"""

import os
import shutil
import sys
from pathlib import Path
from sysconfig import get_config_var, get_paths

from service import COMPILED, HERE, MADE_OF, compiled, sources

MODULES = (
    *("slots", "pending", "pace", "head", "versions", "metrics", "outlet", "channel"),
    *("call", "forms", "predict", "open_inference", "feedback"),
)
GROUP = "service.every_request"  # one library, so that calls between the modules are calls in C


def main() -> int:
    """Compile unless that is done; one line and exit code 2 where something is missing that this needs."""
    if compiled:
        return 0
    compiler = (os.environ.get("CC") or get_config_var("CC") or "cc").split()[0]
    if sys.platform != "linux":
        return refuse("serving is for Linux")
    if not shutil.which(compiler):
        return refuse(f"no C compiler ({compiler})")
    if not (header := Path(get_paths()["include"], "Python.h")).is_file():
        return refuse(f"no {header}; Debian has it in python3-dev")
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext
    except ImportError as error:
        return refuse(f"{error}; pip install 'darkroom[compile]'")

    os.chdir(HERE.parent)
    print("compiling what every request passes: 40 s, again where a source has changed", file=sys.stderr)
    made_of = sources()  # before mypyc reads them
    modules = [f"service/{name}.py" for name in MODULES]
    # As fast as with more optimisation, in three quarters of its time.
    command = build_ext(
        Distribution({"ext_modules": mypycify(modules, opt_level="1", debug_level="0", group_name=GROUP)})
    )
    made = COMPILED.parent.with_name("compiled.new")
    shutil.rmtree(made, ignore_errors=True)
    command.build_lib, command.build_temp = str(made), "build"
    command.ensure_finalized()
    command.run()
    (made / "service" / MADE_OF).write_text(made_of)
    # All at once: a service that starts meanwhile takes all of it or nothing.
    shutil.rmtree(COMPILED.parent, ignore_errors=True)
    made.rename(COMPILED.parent)
    return 0


def refuse(what: str) -> int:
    """Say what is missing."""
    print(f"not compiled: {what}. The service runs as plain Python, which is slower.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
