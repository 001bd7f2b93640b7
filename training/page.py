"""A run's reports as one page that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}
td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}code{background:#f3f3f3}"""
CAPTIONS = {
    "curves.png": "Loss and accuracy",
    "confusion_matrix.png": "What is taken for what",
    "reliability.png": "Whether confidence can be believed",
    "mistakes.png": "The surest mistakes",
    "slices.png": "Where it is weak",
}


def page(document: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """HTML of a run's metrics.json and its pictures, PNG by file name."""
    artifact, data = document["artifact"], document["data"]
    images = ", ".join(f"{count:,} {name}" for name, count in data["images"].items())
    title = f"{escape(artifact['name'])} {escape(artifact['version'])}"
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
        f"<h1>{title}</h1>",
        f"<p>{escape(data['name'])}: {images} images. Epoch {document['best_epoch']} of {len(document['epochs'])} is "
        f"kept. Trained in {document['seconds']:,.0f} s on {escape(document['device'])}.</p>",
        table(("images", "accuracy", "95 % interval", "n"), accuracy_rows(document)),
    ]
    if unknown := document["unknown"]:
        refused = [
            (f"{name}: told unknown, of {part['n']:,}", f"{part['refused']:.1%}")
            for name, part in unknown["strangers"].items()
        ]
        kept = f"{document['measured_on']} images kept (chosen for {unknown['coverage']:.0%} of validation images)"
        head = f"unknown below {unknown['threshold']:.3f}"
        parts.append(table((head, ""), [(kept, f"{unknown['known']:.1%}"), *refused]))
    if document["measured_on"]:
        rows = [
            (name, f"{part['correct'] / part['n']:.1%}" if part["n"] else "", f"{part['n']:,}")
            for name, part in document["per_class"].items()
        ]
        pictured = "".join(
            f"<h2>{CAPTIONS[name]}</h2><img alt='{CAPTIONS[name]}' src='data:image/png;base64,{encoded(body)}'>"
            for name, body in pictures.items()
        )
        parts += [pictured, "<h2>Classes</h2>", table((f"class, {document['measured_on']} images", "right", "n"), rows)]
    recipe = [(name, str(value)) for name, value in document["recipe"].items() if value is not None]
    parts += [
        "<h2>Recipe</h2>",
        table(("field", "value"), recipe),
        f"<p>{', '.join(f'{name} {version}' for name, version in document['torch'].items())}, "
        f"artifact <code>{artifact['digest']}</code>, data <code>{data['fingerprint']}</code></p></html>",
    ]
    return "\n".join(parts) + "\n"


def accuracy_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a split, and one for its mean over six views, where that was measured."""
    views = {f"{name}, 6 views": part for name, part in document["accuracy_6_views"].items()}
    return [
        (name, f"{part['value']:.2%}", "{:.2%} to {:.2%}".format(*part["interval"]), f"{part['n']:,}")
        for name, part in (document["accuracy"] | views).items()
    ]


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table whose cells are text."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=n' * (place > 0)}>{escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()
