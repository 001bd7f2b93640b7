"""`python -m service`: settings and the artifact's seal are checked before anything heavy is imported."""

import os
import signal
import sys

from models import manifest as manifests
from models.errors import ArtifactError
from service import keys as keys_module
from service import settings as settings_module
from service.settings import SettingsError


def main() -> int:
    """Serve; exit code 2 with one line where a setting or the artifact is wrong."""
    # Until `run` takes over; as process 1 a signal without a handler would be dropped.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = settings_module.load(sys.argv[1:])
        keys = keys_module.load(settings.api_keys_file, os.environ)
        manifest = manifests.read(settings.model)
    except (SettingsError, ArtifactError) as error:
        return refuse(error)
    try:
        from service import seams

        seams.check()
        from service.server import StartError, run
    except ImportError as error:
        return refuse(f"{error}; install the versions that requirements.lock names")
    try:
        return run(settings, manifest, keys)
    except StartError as error:
        return refuse(error)


def refuse(error: object) -> int:
    """Say why in one line."""
    print(f"darkroom: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
