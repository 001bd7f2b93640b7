"""`python -m service`: settings and the artifact's seal are checked before anything heavy is imported."""

import multiprocessing
import os
import sys
import tempfile
from importlib.util import find_spec
from multiprocessing import forkserver

from models.errors import ArtifactError
from service import console
from service import keys as keys_module
from service import settings as settings_module
from service.console import ADMIN_FLAG
from service.edition import look_for_models
from service.orphans import PARENT
from service.settings import ADMIN_KEYS_VARIABLE, SettingsError
from service.signals import Signals
from service.sockets import StartError, hold_port


def main() -> int:
    """Serve; exit code 2 with one line where a setting or the artifact is wrong."""
    signals = Signals()
    try:
        with signals.waiting():
            if sys.argv[1:2] == ["models"]:
                return console.main(sys.argv[2:])
            settings = settings_module.load(sys.argv[1:])
            keys = keys_module.load(settings.api_keys_file, os.environ)
            admins = keys_module.load(settings.admin_keys_file, os.environ, ADMIN_FLAG, ADMIN_KEYS_VARIABLE)
            found = look_for_models(settings.model, settings.keep_images)
            if settings.tracing and not (installed("opentelemetry.sdk") and installed("opentelemetry.exporter.otlp")):
                raise StartError("--tracing needs OpenTelemetry: pip install 'darkroom[tracing]'")
            holder = hold_port(settings.host, settings.port)
            start_nursery()
        try:
            from service import seams

            seams.check()
            from service.server import run
        except ImportError as error:
            return refuse(f"{error}; install the versions that requirements.lock names")
        return run(settings, found, keys, admins, holder, signals)
    except KeyboardInterrupt:
        return 0
    except (SettingsError, ArtifactError, StartError) as error:
        return refuse(error)


def start_nursery() -> None:
    """Start the process that workers are forked from: it imports torch while this one imports what it needs itself."""
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise StartError(f"no folder for temporary files (a few sockets) can be written: {error.strerror}") from None
    multiprocessing.set_forkserver_preload(["service.nursery", "service.batching", "service.worker"])
    os.environ[PARENT] = str(os.getpid())
    try:
        forkserver.ensure_running()
    except OSError:  # sockets have paths of up to 107 bytes
        raise StartError(f"no socket can be made in {folder}; set TMPDIR to a shorter path") from None


def installed(module: str) -> bool:
    """Whether a module is there, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it would be in
        return False


def refuse(error: object) -> int:
    """Say why in one line."""
    print(f"darkroom: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
