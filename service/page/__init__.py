"""The page at `/`, on which one tries the model: one HTML document, which needs nothing from anywhere else."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template

from models.card import rows
from models.manifest import Manifest
from service.settings import Settings

ROUTE = "/page"  # of a model by its name; of the only one it is /
SAMPLES = ("circle", "triangle", "square", "pentagon", "star", "cross")  # that the page can draw
MOST_TOGETHER = 8  # masked copies in one request: others' pictures come between


def page(manifest: Manifest, settings: Settings, *, keyed: bool, named: bool) -> tuple[str, Mapping[str, str]]:
    """The document and its headers; `keyed` where predictions need a key, `named` where they need the model's name."""
    style, script = (read(name) for name in ("page.css", "page.js"))
    drawn = [name for name in SAMPLES if set(SAMPLES) <= set(manifest.classes)]
    facts = {
        "classes": len(manifest.classes),
        "together": min(MOST_TOGETHER, settings.max_images),
        "keyed": keyed,
        "samples": drawn,
        "info": settings.info,
        "at": f"/{manifest.name}" if named else "",
    }
    formats = settings.accepted_formats
    document = Template(read("page.html")).substitute(
        title=f"Darkroom: {escape(manifest.name)}",
        model=escape(manifest.name),
        version=escape(manifest.version),
        accept=",".join(f"image/{name.lower()}" for name in formats),
        formats=", ".join(formats),
        kept=f" It keeps them for up to {settings.keep_days} days, to learn from." if settings.keep_images else "",
        megabytes=f"{settings.max_body_bytes / 1e6:.3g}",
        card="".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows(manifest)),
        classes="".join(f"<li>{escape(name)}</li>" for name in manifest.classes),
        count=len(manifest.classes),
        facts=json.dumps(facts),
        style=style,
        script=script,
    )
    return document, guarding(f"script-src {digest(script)}; style-src {digest(style)}; connect-src 'self'")


def index(names: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    """The document at `/` where several models are served, the way to each one's page, and its headers."""
    style = "body{font:16px/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    links = "".join(f'<li><a href="{ROUTE}/{escape(name)}">{escape(name)}</a></li>' for name in names)
    document = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Darkroom</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{style}</style>
<main><h1>Darkroom</h1><p>Try one of the models:</p><ul>{links}</ul>
<p><a href="/docs">API</a> · <a href="/metrics">metrics</a></p></main></html>"""
    return document, guarding(f"style-src {digest(style)}")


def guarding(sources: str) -> Mapping[str, str]:
    """Headers that let a document use nothing else."""
    policy = f"default-src 'none'; {sources}; img-src blob: data:; base-uri 'none'; form-action 'none'"
    return {
        "content-security-policy": f"{policy}; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


@cache
def read(name: str) -> str:
    """A file beside this one."""
    return (files("service.page") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """An inline script or style as a policy names it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
