"""The process that others are forked from, imported nowhere else: it has torch, which takes seconds to import.

It has no threads and uses no device, so its copies may; it ends with the main process, and its copies with it.
"""

import os
import signal

from service.orphans import PARENT, end_with_parent

# A signal to the whole group is the main process's to answer. Copies inherit this.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parent(int(os.environ[PARENT]))
# An idle OpenMP thread must not spin on a core that others can use; libgomp reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from models import artifact, engine, optimisation  # noqa: E402, F401
