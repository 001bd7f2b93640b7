"""The service's port: held before anything heavy is imported, then shared by the HTTP processes."""

import errno
import socket
from typing import Any


class StartError(Exception):
    """The service cannot start; one line."""


def listener(address: tuple[Any, ...], family: int, reuse_port: bool = True) -> socket.socket:
    """A bound socket; with `reuse_port` beside others of this service on the same port."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(address)
    bound.set_inheritable(True)
    return bound


def hold_port(host: str, port: int, flag: str = "--port") -> socket.socket:
    """Bind, without listening: while the model loads, clients are refused instead of left waiting.

    Raises:
        StartError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Alone first: with SO_REUSEPORT a second service of the same user would quietly share the first one's requests.
        listener(address, family, reuse_port=False).close()
        return listener(address, family)
    except UnicodeError:  # of the codec for names, idna
        raise StartError(f"--host {host}: no host can be called so") from None
    except OSError as error:
        raise taken(host, port, flag, error) from None


def taken(host: str, port: int, flag: str, error: OSError) -> StartError:
    """The error of an address that cannot be had."""
    wrong = flag if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
    return StartError(f"--host {host} {flag} {port}: {error.strerror or error}; choose another with {wrong}")
