"""The keys of those who may ask for predictions; none set means that everybody may."""

import hmac
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from hashlib import sha256
from pathlib import Path

from service.errors import Unauthorized
from service.settings import KEYS_VARIABLE, SettingsError


class Keys:
    """Several keys, all valid at once."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Only their digests are kept."""
        self.digests = [digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self.digests)

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request without a key; `headers` have lower-case names.

        Raises:
            Unauthorized: it brings none, or none that is known.
        """
        if self.digests and not any([self.known(key) for key in offered(headers)]):
            raise Unauthorized("Send a valid key as Authorization: Bearer KEY or X-API-Key: KEY.")

    def known(self, key: bytes) -> bool:
        """Whether it is one of them, in the same time whichever it is."""
        given = digest(key)
        return any([hmac.compare_digest(given, kept) for kept in self.digests])


def digest(key: bytes) -> bytes:
    return sha256(key).digest()


def offered(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The keys that a request brings."""
    if b"x-api-key" in headers:
        yield headers[b"x-api-key"].strip()
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield key.strip()


def load(
    path: Path | None,
    environment: MutableMapping[str, str],
    flag: str = "--api-keys-file",
    variable: str = KEYS_VARIABLE,
) -> Keys:
    """Those who may ask, by the keys of the flag's file and of the variable.

    Raises:
        SettingsError: there are none in one that is given, or one is malformed; one line, without the key.
    """
    return Keys(read(path, environment, flag, variable))


def read(path: Path | None, environment: MutableMapping[str, str], flag: str, variable: str) -> list[str]:
    """The keys of the flag's file and of the variable, which is taken out of `environment`: workers need none.

    Raises:
        SettingsError: there are none in one that is given, or one is malformed; one line, without the key.
    """
    keys: list[str] = []
    if path is not None:
        try:
            lines = path.read_text("latin-1").splitlines()
        except OSError as error:
            raise SettingsError(f"{flag} {path}: {error.strerror}") from None
        told = {f"{flag} {path}: line {number}": line.strip() for number, line in enumerate(lines, 1)}
        keys += parsed(f"{flag} {path}", {at: line for at, line in told.items() if not line.startswith("#")})
    if (value := environment.pop(variable, None)) is not None:
        parts = enumerate(value.split(","), 1)
        keys += parsed(variable, {f"{variable}: key {number}": part.strip() for number, part in parts})
    return keys


def first_key(path: Path | None, environment: MutableMapping[str, str], flag: str, variable: str) -> str:
    """The key to ask with.

    Raises:
        SettingsError: there is none.
    """
    keys = read(path, environment, flag, variable)
    if not keys:
        raise SettingsError(f"no key; give {flag} FILE or the variable {variable}")
    return keys[0]


def parsed(source: str, told: Mapping[str, str]) -> list[str]:
    """The keys among texts by their places; blank ones are skipped."""
    keys = {at: text for at, text in told.items() if text}
    for at, key in keys.items():
        if not re.fullmatch("[!-~]+", key):
            raise SettingsError(f"{at}: a key has visible ASCII characters only")
    if not keys:
        raise SettingsError(f"{source}: no keys")
    return list(keys.values())
