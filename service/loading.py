"""An edition's engine, wherever it runs: of the file that was looked at, proved, and as fast as pays."""

from typing import TYPE_CHECKING

from models.errors import ArtifactError
from service.edition import Edition

if TYPE_CHECKING:
    from models.engine import Engine


def load(
    edition: Edition,
    device: str,
    offered: str,
    dtype: str,
    max_batch_size: int,
    sharing: int,
    *,
    nvjpeg: bool = False,
) -> "Engine":
    """Load, prove, optimise and warm; for `device` see `models.engine.choose`, so many are `sharing` its cores.

    Raises:
        ArtifactError, DeviceError: it or the device cannot be used.
    """
    # Here, not above: processes without torch import this module too.
    from models import artifact, engine, optimisation

    chosen = engine.choose(device, offered, dtype)
    loaded = artifact.load(edition.path)
    if loaded.manifest != edition.manifest:  # by which others answer
        raise ArtifactError(
            edition.path,
            f"the file that was looked at first (digest {edition.manifest.digest[:12]})",
            f"another (digest {loaded.manifest.digest[:12]}); give another version a file of its own",
        )
    plan = engine.Plan(**edition.plan) if edition.plan else None
    return optimisation.prepare(loaded, chosen, dtype, max_batch_size, sharing, plan, nvjpeg)
