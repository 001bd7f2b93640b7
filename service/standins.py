"""What stands where LitServe has parts of its own that are not needed here: its transport, and its wait for the end."""

import asyncio
from collections.abc import Callable
from time import sleep
from typing import Any

from litserve.transport.base import MessageTransport

from service.signals import Signals

SIGNAL_S = 0.5  # after which a signal that was missed is seen


class Idle(MessageTransport):
    """Stands where LitServe expects its own transport: answers come through `Channel`, so nothing is ever received."""

    def __init__(self, stop: Callable[[], None]) -> None:
        """LitServe closes it when it begins to stop."""
        self.stop = stop
        self.cancelled = False

    def __getstate__(self) -> dict[str, Any]:
        """Workers get the transport itself as their request queue."""
        return {}

    def send(self, item: Any, consumer_id: int) -> None:
        """Never called: the batching loop answers through the transport."""
        raise NotImplementedError

    async def areceive(self, *_: Any, **__: Any) -> Any:
        """Wait to be cancelled; LitServe asks once more after that."""
        if self.cancelled:
            raise asyncio.CancelledError
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled = True

    def close(self, **_: Any) -> None:
        """LitServe begins to stop."""
        self.stop()


class Shutdown:
    """Stands where LitServe waits for its end, without a bound: a signal that comes just before would be missed."""

    def __init__(self, signals: Signals) -> None:
        """A signal is the end."""
        self.signals = signals

    def wait(self) -> None:
        """Wait for it.

        Raises:
            KeyboardInterrupt: it has come.
        """
        with self.signals.waiting():
            while True:
                self.signals.check()
                sleep(SIGNAL_S)
