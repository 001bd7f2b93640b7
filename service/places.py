"""Places: of a worker's threads as many as have one go their way to the end, and the others stand by (decision 26)."""

import threading


class Place(threading.local):
    """What each thread of a pipeline knows of itself; all that are given the same `free` places share these."""

    held = False
    decode_seconds = 0.0  # that its last image took

    def __init__(self, free: threading.Semaphore) -> None:
        """Every thread begins without one."""
        self.free = free

    def take(self) -> bool:
        """Wait for a place, unless this thread has one; whether it had none."""
        if self.held:
            return False
        self.free.acquire()
        self.held = True
        return True

    def leave(self) -> None:
        """Let another thread have this one's place, if it has one."""
        if self.held:
            self.held = False
            self.free.release()
