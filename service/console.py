"""`python -m service models`: another version of the model, while the service goes on serving."""

import argparse
import json
import os
import sys
from http.client import HTTPException
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from service.errors import NO_ROUTE
from service.keys import first_key
from service.settings import ADMIN_KEYS_VARIABLE, Parser, SettingsError

ADMIN_FLAG = "--admin-keys-file"
HELP = f"""Change the version that a running service serves; it needs one of the service's {ADMIN_FLAG} keys.

  python -m service models list                          what is there, what serves, what stands by
  python -m service models load 2                        NAME/2.pt beside the one that serves: proved and warmed
  python -m service models shadow                        copies of all requests, to compare: darkroom_shadow_...
  python -m service models share 0.1                     let it answer a tenth of the requests; 0 takes that back
  python -m service models promote                       let it serve; no request is lost
  python -m service models rollback                      take it away, or go back to what served before
  python -m service models load 2 --promote              both, once it is ready
  python -m service models load 2 --name photos          where the service has several models"""
LOOK_S = 0.2
REQUEST_S = 10


class Trouble(Exception):
    """Why an order was not carried out; one line."""


class Remote:
    """The service's routes for operators."""

    def __init__(self, url: str, key: str, name: str | None = None) -> None:
        """Of the model of this `name`, which the only one of a service needs not."""
        self.url, self.key = url.rstrip("/"), key
        self.at = f"/models/{quote(name, safe='')}" if name else "/models"

    def ask(self, path: str, wish: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the service answers.

        Raises:
            Trouble: it refuses, or is not there.
        """
        body = None if wish is None else json.dumps(wish).encode()
        try:
            request = Request(self.url + path, body, {"X-API-Key": self.key, "Content-Type": "application/json"})
            with urlopen(request, timeout=REQUEST_S) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except HTTPError as error:
            raise Trouble(refusal(error)) from None
        except (URLError, OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Trouble(f"no service answers at {self.url}: {reason}") from None

    def outcome(self, order: str, wait_s: float) -> dict[str, Any]:
        """How an order ended.

        Raises:
            Trouble: it failed, or takes longer.
        """
        until = monotonic() + wait_s
        while monotonic() < until:
            state = self.ask(self.at)
            for ended in state.get("ended", []):
                if ended["id"] == order and not ended["done"]:
                    raise Trouble(ended["detail"])
                if ended["id"] == order:
                    return state
            sleep(LOOK_S)
        raise Trouble(f"not done after {wait_s:g} s; python -m service models list tells how it goes")


def refusal(error: HTTPError) -> str:
    """Why the service refuses."""
    try:
        detail = str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url} answers {error.code}"
    if detail == NO_ROUTE:
        return f"{error.url}: no such route; no such model, or started without {ADMIN_FLAG} or {ADMIN_KEYS_VARIABLE}"
    return detail


def parser() -> Parser:
    """The commands."""
    made = Parser(
        prog="python -m service models", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Parser(add_help=False)
    shared.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    shared.add_argument(
        ADMIN_FLAG, type=Path, help=f"file whose first key is used; else the variable {ADMIN_KEYS_VARIABLE}"
    )
    shared.add_argument("--name", help="the model, where the service has several")
    shared.add_argument("--wait", type=float, default=300, help="seconds to wait for the end (default: %(default)s)")
    actions = made.add_subparsers(dest="action", required=True, metavar="list|load|shadow|share|promote|rollback")
    for action in ("list", "rollback"):
        actions.add_parser(action, parents=[shared])
    for action in ("shadow", "promote"):
        actions.add_parser(action, parents=[shared]).add_argument("version", nargs="?", help="to be sure of which")
    load = actions.add_parser("load", parents=[shared])
    load.add_argument("version", help="the name of a file, without .pt")
    load.add_argument("--promote", action="store_true", default=None, help="let it serve as soon as it is ready")
    share = actions.add_parser("share", parents=[shared])
    share.add_argument("share", type=float, help="from 0 to 1")
    return made


def main(arguments: list[str]) -> int:
    """Exit code 1 where an order failed, 2 where it makes no sense."""
    try:
        given = parser().parse_args(arguments)
        remote = Remote(
            given.url, first_key(given.admin_keys_file, os.environ, ADMIN_FLAG, ADMIN_KEYS_VARIABLE), given.name
        )
    except SettingsError as error:
        print(
            f"darkroom: {error}".replace("python -m service --help", "python -m service models --help"), file=sys.stderr
        )
        return 2
    wish = {
        name: value for name in ("version", "share", "promote") if (value := getattr(given, name, None)) is not None
    }
    try:
        if given.action == "list":
            state = remote.ask(remote.at)
        else:
            state = remote.outcome(remote.ask(f"{remote.at}/{given.action}", wish)["id"], given.wait)
    except Trouble as error:
        print(f"darkroom: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("darkroom: no longer waited for; the service goes on with what was ordered", file=sys.stderr)
        return 130
    for name, one in state.get("models", {"": state}).items():
        print(f"{name}\n{table(one)}" if name else table(one))
    return 0


def table(state: dict[str, Any]) -> str:
    """The versions for people."""
    rows = [("version", "file", "stage", "share", "shadow", "digest")]
    for one in state.get("versions", []):
        shadow = "yes" if one["shadow"] else "no"
        rows.append((one["version"], one["file"], one["stage"], f"{one['share']:.4g}", shadow, one["digest"][:12]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(f"there are: {', '.join(state.get('available', [])) or 'none'}")
    if state.get("previous"):
        lines.append(f"before: {state['previous']}")
    return "\n".join(lines)
