"""What the service does, as OpenAPI 3.1, and the same as a page for people that needs no outside address."""

import json
from html import escape
from typing import Any

from models.errors import ImageError
from models.manifest import Manifest
from service.endpoint import DEFAULT_TOP_K, LONGEST_TIMEOUT_MS
from service.errors import BY_CODE, ServiceError, leaves
from service.settings import Settings

Json = dict[str, Any]
KEYS: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def content(kind: str, schema: Json) -> Json:
    return {kind: {"schema": schema}}


def struct(properties: Json, *, required: list[str] | None = None) -> Json:
    """An object; every property is required unless said otherwise."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


def schemas(manifest: Manifest) -> Json:
    """The shapes of requests and replies."""
    string, integer = {"type": "string"}, {"type": "integer"}
    prediction = struct(
        {
            "class": {"type": "string"},
            "index": {"type": "integer", "minimum": 0, "maximum": len(manifest.classes) - 1},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        }
    )
    predictions = {"type": "array", "items": ref("Prediction"), "minItems": 1}
    members = {"type": string, "title": string, "status": integer, "detail": string, "request_id": string}
    problem = struct(
        members | {"code": {"enum": sorted(BY_CODE)}, "results": ref("Results")}, required=[*members, "code"]
    )
    item = {"oneOf": [struct({"predictions": predictions}), struct({"error": ref("Problem")})]}
    head = {"request_id": string, "model": struct({"name": string, "version": string})}
    return {
        "Prediction": prediction,
        "Problem": problem,
        "Results": {"type": "array", "items": item, "minItems": 1},
        "One": struct(head | {"predictions": predictions}),
        "Several": struct(head | {"results": ref("Results")}),
        "JsonImage": struct({"image": string | {"description": "base64; a data: prefix is accepted"}}),
        "JsonImages": struct({"images": {"type": "array", "items": string, "minItems": 1}}),
    }


def problems(*statuses: int) -> Json:
    """Problem responses by status."""
    titles = {int(leaf.status): leaf.status.phrase for base in (ServiceError, ImageError) for leaf in leaves(base)}
    return {
        str(status): {"description": titles[status], "content": content("application/problem+json", ref("Problem"))}
        for status in statuses
    }


def guarded(operation: Json, keyed: bool) -> Json:
    """An operation that needs a key where keys are set."""
    if not keyed:
        return operation
    return operation | {"security": [{name: []} for name in KEYS], "responses": operation["responses"] | problems(401)}


def predict(settings: Settings) -> Json:
    """`POST /predict`."""
    binary = {"type": "string", "format": "binary"}
    kinds = [f"image/{name.lower()}" for name in settings.accepted_formats]
    form = struct({"file": {"type": "array", "items": binary, "minItems": 1, "maxItems": settings.max_images}})
    body = {
        **{kind: {"schema": binary} for kind in (*kinds, "application/octet-stream")},
        **content("multipart/form-data", form),
        **content("application/json", {"oneOf": [ref("JsonImage"), ref("JsonImages")]}),
    }
    top_k: Json = {
        "type": "integer",
        "minimum": 1,
        "description": f"default min({DEFAULT_TOP_K}, K); more than K gives K",
    }
    timeout: Json = {"type": "integer", "minimum": 1, "maximum": LONGEST_TIMEOUT_MS, "default": settings.timeout_ms}
    request_id: Json = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}
    success = {
        "description": "Predictions, highest first; `results` when several images were sent",
        "headers": {name: {"schema": {"type": "string"}} for name in ("X-Request-ID", "Server-Timing")},
        "content": content("application/json", {"oneOf": [ref("One"), ref("Several")]}),
    }
    return {
        "summary": "Classify one or several images",
        "operationId": "predict",
        "parameters": [
            {"name": "top_k", "in": "query", "schema": top_k},
            {"name": "X-Timeout-Ms", "in": "header", "schema": timeout},
            {"name": "X-Request-ID", "in": "header", "schema": request_id},
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": success, **problems(400, 408, 413, 415, 422, 429, 431, 500, 503, 504)},
    }


def get(summary: str, kind: str | None, *statuses: int) -> Json:
    """A GET route that answers 200 with `kind`, or a problem."""
    success: Json = {"description": summary}
    if kind:
        schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
        success["content"] = content(kind, schema)
    return {"get": {"summary": summary, "responses": {"200": success, **problems(431, 500, *statuses)}}}


def document(manifest: Manifest, settings: Settings, release: str, *, keyed: bool) -> Json:
    """The OpenAPI document of this service; `keyed` where predictions need a key."""
    paths: Json = {
        "/predict": {"post": guarded(predict(settings), keyed)},
        "/health": get("Ready to answer", "application/json", 503),
        "/readyz": get("Ready to answer, bare", None, 503),
        "/livez": get("Working, or able to recover by itself", None, 503),
    }
    if settings.metrics_port is None:
        paths["/metrics"] = get("Prometheus metrics of all processes", "text/plain")
    if settings.info:
        info = get("The model, its device and the limits", "application/json")
        paths["/info"] = {"get": guarded(info["get"], keyed)}
    if settings.docs:
        paths["/docs"] = get("This document for people", "text/html")
        paths["/openapi.json"] = get("This document", "application/json")
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Darkroom: {manifest.name}", "version": release, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": schemas(manifest)} | ({"securitySchemes": KEYS} if keyed else {}),
    }


def page(document: Json) -> str:
    """The document as plain HTML."""
    sections = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td>{status}</td><td>{escape(response['description'])}</td></tr>"
                for status, response in operation["responses"].items()
            )
            detail = {key: operation[key] for key in ("parameters", "requestBody") if key in operation}
            shown = f"<pre>{escape(json.dumps(detail, indent=2))}</pre>" if detail else ""
            heading = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"
            sections.append(f"{heading}<table>{rows}</table>{shown}")
    title = escape(document["info"]["title"])
    schemas_shown = escape(json.dumps(document["components"]["schemas"], indent=2))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}}
pre{{overflow:auto;font-size:13px}}td{{padding-right:1rem}}</style>
<h1>{title}</h1><p>Machine-readable: <a href="/openapi.json">/openapi.json</a></p>{"".join(sections)}
<h2>Schemas</h2><pre>{schemas_shown}</pre></html>"""
