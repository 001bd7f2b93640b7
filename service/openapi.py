"""What the service does, as OpenAPI 3.1, and the same as a page for people that needs no outside address."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from models.errors import ImageError
from models.manifest import Manifest
from service.call import LONGEST_TIMEOUT_MS
from service.errors import BY_CODE, ServiceError, leaves
from service.metrics import MODELS_ROUTE, V2_ROUTE
from service.open_inference import DATATYPES, OUTPUTS
from service.predict import DEFAULT_TOP_K
from service.rollout import ACTIONS
from service.settings import Settings

Json = dict[str, Any]
REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
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


def schemas(classes: int) -> Json:
    """The shapes of requests and replies, of models with at most so many classes."""
    string, integer = {"type": "string"}, {"type": "integer"}
    prediction = struct(
        {
            "class": {"type": "string"},
            "index": {"type": "integer", "minimum": 0, "maximum": classes - 1},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
        }
    )
    predictions = {"type": "array", "items": ref("Prediction"), "minItems": 1}
    members = {"type": string, "title": string, "status": integer, "detail": string, "request_id": string}
    problem = struct(
        members | {"error": string, "code": {"enum": sorted(BY_CODE)}, "results": ref("Results")},
        required=[*members, "code"],
    )
    unknown = {"const": True, "description": "only where the first probability is below the model's threshold"}
    found = {"predictions": predictions, "unknown": unknown}
    item = {"oneOf": [struct(found, required=["predictions"]), struct({"error": ref("Problem")})]}
    head = {"request_id": string, "model": struct({"name": string, "version": string})}
    return {
        "Prediction": prediction,
        "Problem": problem,
        "Results": {"type": "array", "items": item, "minItems": 1},
        "One": struct(head | found, required=[*head, "predictions"]),
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
    request_id: Json = {"type": "string", "pattern": REQUEST_ID}
    success = {
        "description": "Predictions, highest first; `results` when several images were sent",
        "headers": {name: {"schema": {"type": "string"}} for name in ("X-Request-ID", "Server-Timing")},
        "content": content("application/json", {"oneOf": [ref("One"), ref("Several")]}),
    }
    kept = f"Images are kept for up to {settings.keep_days} days, for training"
    return {
        "summary": "Classify one or several images",
        **({"description": kept} if settings.keep_images else {}),
        "operationId": "predict",
        "parameters": [
            {"name": "top_k", "in": "query", "schema": top_k},
            {"name": "X-Timeout-Ms", "in": "header", "schema": timeout},
            {"name": "X-Request-ID", "in": "header", "schema": request_id},
        ],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": success, **problems(400, 408, 413, 415, 422, 429, 431, 500, 503, 504)},
    }


def feedback(manifest: Manifest, settings: Settings) -> Json:
    """`POST /feedback`."""
    request_id, name = {"type": "string", "pattern": REQUEST_ID}, {"enum": list(manifest.classes)}
    image = {"type": "integer", "minimum": 0, "maximum": settings.max_images - 1}
    told = {"description": "which of several images, 0 for the first"}
    body = struct({"request_id": request_id, "class": name, "image": image | told}, required=["request_id", "class"])
    members = {"request_id": request_id, "image": image, "predicted": name, "class": name, "right": {"type": "boolean"}}
    success = {
        "description": "Whether the prediction was right; the same feedback again changes nothing",
        "content": content(
            "application/json", struct(members, required=[member for member in members if member != "image"])
        ),
    }
    return {
        "summary": "Tell what an image really was, by the X-Request-ID of its prediction",
        "operationId": "feedback",
        "requestBody": {"required": True, "content": content("application/json", body)},
        "responses": {"200": success, **problems(400, 404, 408, 413, 415, 429, 431, 500, 503, 504)},
    }


def get(summary: str, kind: str | None, *statuses: int) -> Json:
    """A GET route that answers 200 with `kind`, or a problem."""
    success: Json = {"description": summary}
    if kind:
        schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
        success["content"] = content(kind, schema)
    return {"get": {"summary": summary, "responses": {"200": success, **problems(431, 500, *statuses)}}}


def open_inference_schemas() -> Json:
    """The shapes of the Open Inference Protocol, https://github.com/open-inference/open-inference-protocol."""
    string, parameters = {"type": "string"}, {"type": "object"}
    tensor: Json = {
        "name": string,
        "datatype": {"enum": sorted(set(DATATYPES.values()))},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": parameters,
        "data": {"type": "array", "description": "absent where it follows the JSON as raw bytes"},
    }
    output: Json = struct({"name": {"enum": list(OUTPUTS)}, "parameters": parameters}, required=["name"])
    request: Json = {
        "id": string,
        "parameters": parameters,
        "inputs": {"type": "array", "items": ref("Tensor"), "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": output},
    }
    reply: Json = {"id": string, "model_name": string, "model_version": string}
    reply["outputs"] = {"type": "array", "items": ref("Tensor")}
    return {
        "Tensor": struct(tensor, required=["name", "datatype", "shape"]),
        "InferenceRequest": struct(request, required=["inputs"]),
        "InferenceReply": struct(reply, required=["model_name", "model_version", "outputs"]),
    }


def open_inference(manifest: Manifest, settings: Settings, keyed: bool) -> Json:
    """The routes under `/v2`."""
    parameters = predict(settings)["parameters"]
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    length: Json = {"name": "Inference-Header-Content-Length", "in": "header", "schema": {"type": "integer"}}
    infer = {
        "summary": "Classify images by the Open Inference Protocol",
        "description": f"Inputs and outputs as GET {V2_ROUTE}/models/{manifest.name} tells them, in JSON or raw bytes",
        "parameters": [length, *parameters[1:]],
        "requestBody": {"required": True, "content": content("application/json", ref("InferenceRequest")) | binary},
        "responses": {
            "200": {
                "description": "The outputs that were asked for, else all",
                "content": content("application/json", ref("InferenceReply")) | binary,
            },
            **problems(400, 408, 413, 415, 422, 429, 431, 500, 503, 504),
        },
    }
    paths: Json = {
        "": get("The server", "application/json"),
        "/health/live": get("Working, or able to recover by itself", None, 503),
        "/health/ready": get("Ready to answer", None, 503),
        "/repository/index": {"post": get("The model", None)["get"]},
    }
    for at in (f"/models/{manifest.name}", f"/models/{manifest.name}/versions/{manifest.version}"):
        paths[at] = get("The model's inputs and outputs", "application/json")
        paths[f"{at}/ready"] = get("Ready to answer", None, 503)
        paths[f"{at}/config"] = get("The same as Triton tells it", "application/json")
        paths[f"{at}/infer"] = {"post": guarded(infer, keyed)}
    return {V2_ROUTE + path: methods for path, methods in paths.items()}


def administration(at: str) -> Json:
    """The routes under `/models`, or under a model's name there."""
    order = struct(
        {"version": {"type": "string"}, "share": {"type": "number"}, "promote": {"type": "boolean"}}, required=[]
    )
    done = struct({"id": {"type": "string"}, "action": {"enum": list(ACTIONS)}})
    paths: Json = {at: {"get": guarded(get("The versions of the model", "application/json")["get"], keyed=True)}}
    for action in ACTIONS:
        operation = {
            "summary": f"Order: {action}",
            "requestBody": {"content": content("application/json", order)},
            "responses": {
                "202": {"description": "Ordered", "content": content("application/json", done)},
                **problems(400, 408, 413, 429, 431, 500, 503),
            },
        }
        paths[f"{at}/{action}"] = {"post": guarded(operation, keyed=True)}
    return paths


def document(
    manifests: Sequence[Manifest], settings: Settings, release: str, *, keyed: bool, operators: bool = False
) -> Json:
    """The OpenAPI document of this service; `keyed` where predictions need a key, `operators` where some have keys.

    Of several models each one's routes are shown with its name, of the only one without.
    """
    several = len(manifests) > 1
    paths: Json = {}
    if several and settings.info:
        paths["/info"] = {"get": guarded(get("All models", "application/json")["get"], keyed)}
    if several and settings.docs:
        paths["/"] = get("The way to each model's page", "text/html")
    if several and operators:
        paths[MODELS_ROUTE] = {"get": guarded(get("The versions of all models", "application/json")["get"], keyed=True)}
    for one in manifests:
        at = f"/{one.name}" if several else ""
        operations = {"predict": predict(settings)}
        if settings.feedback:
            operations["feedback"] = feedback(one, settings)
        for name, operation in operations.items():
            told = operation | {"operationId": f"{name}-{one.name}"} if several else operation
            paths[f"/{name}{at}"] = {"post": guarded(told, keyed)}
        if settings.info:
            info = get("The model, its device and the limits", "application/json")
            paths[f"/info{at}"] = {"get": guarded(info["get"], keyed)}
        if settings.docs:
            paths[f"/page{at}" if several else "/"] = get("A page to try the model on", "text/html")
        paths |= open_inference(one, settings, keyed) | (administration(MODELS_ROUTE + at) if operators else {})
    paths |= {
        "/health": get("Ready to answer", "application/json", 503),
        "/readyz": get("Ready to answer, bare", None, 503),
        "/livez": get("Working, or able to recover by itself", None, 503),
    }
    if settings.metrics_port is None:
        paths["/metrics"] = get("Prometheus metrics of all processes", "text/plain")
    if settings.docs:
        paths["/docs"] = get("This document for people", "text/html")
        paths["/openapi.json"] = get("This document", "application/json")
    shapes = schemas(max(len(one.classes) for one in manifests)) | open_inference_schemas()
    names = ", ".join(one.name for one in manifests)
    about: Json = {"title": f"Darkroom: {names}", "version": release, "license": {"name": "Apache-2.0"}}
    if not several:
        about["description"] = (
            f"/predict, /feedback and /info answer with the model's name behind them, too: /predict/{names}"
        )
    return {
        "openapi": "3.1.0",
        "info": about,
        "paths": paths,
        "components": {"schemas": shapes} | ({"securitySchemes": KEYS} if keyed or operators else {}),
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
