"""Two runs side by side, from their metrics.json."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import TrainingError

CHANGES = 5  # classes that are told


def read(run: Path) -> dict[str, Any]:
    """What a run measured.

    Raises:
        TrainingError: it has no reports.
    """
    path = run / "reports" / "metrics.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}; give the folder of a finished run") from None
    except ValueError:
        raise TrainingError(f"{path} is no JSON; give the folder of a finished run") from None
    return document


def rank(document: Mapping[str, Any]) -> float:
    """What the better of two runs has more of: accuracy on validation images, never on test images."""
    return float(document["accuracy"].get("validation", {"value": 0.0})["value"])


def told(names: tuple[str, str], first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """What differs, and whether accuracy does by more than chance; `second` is held against `first`."""
    lines = [f"{'':24}  {names[0]:24}  {names[1]}"]

    def row(what: str, *cells: object) -> None:
        left, right = map(str, cells)
        lines.append(f"{what:24}  {left:24}  {right}")

    for split in ("validation", "test"):
        if split in first["accuracy"] and split in second["accuracy"]:
            parts = first["accuracy"][split], second["accuracy"][split]
            row(f"{split} accuracy", *(f"{part['value']:.2%} of {part['n']:,}" for part in parts))
            lines.append(f"{'':24}  {verdict(*parts)}")
    if first["calibration"] and second["calibration"]:
        row("calibration error", *(f"{run['calibration']['error_after']:.2%}" for run in (first, second)))
    row("kept epoch", *(f"{run['best_epoch']} of {len(run['epochs'])}" for run in (first, second)))
    row("seconds", *(f"{run['seconds']:,.0f}" for run in (first, second)))
    row("data", *(f"{run['data']['name']} {run['data']['fingerprint'][:12]}" for run in (first, second)))
    for name in dict.fromkeys([*first["recipe"], *second["recipe"]]):
        values = [run["recipe"].get(name) for run in (first, second)]
        if values[0] != values[1]:
            row(name, *values)
    return "\n".join([*lines, *changes(first, second)])


def verdict(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The difference of two accuracies with its 95 % interval, as if their images were independent.

    By R. G. Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine
    17, 1998, method 10: from the Wilson interval of each.
    """
    difference = second["value"] - first["value"]
    (low1, high1), (low2, high2) = first["interval"], second["interval"]
    low = difference - math.hypot(second["value"] - low2, high1 - first["value"])
    high = difference + math.hypot(high2 - second["value"], first["value"] - low1)
    chance = "may be chance" if low <= 0 <= high else "is more than chance"
    return f"difference {difference:+.2%} (95 % interval {low:+.2%} to {high:+.2%}): {chance}"


def changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The classes whose accuracy differs most."""
    pairs = [
        (part["correct"] / part["n"], other["correct"] / other["n"], name)
        for name, part in (first.get("per_class") or {}).items()
        if (other := (second.get("per_class") or {}).get(name)) and part["n"] and other["n"]
    ]
    pairs.sort(key=lambda pair: -abs(pair[1] - pair[0]))
    told = [f"  {name:22}  {was:<24.2%}  {now:.2%}" for was, now, name in pairs[:CHANGES] if was != now]
    return ["classes that differ most", *told] if told else []
