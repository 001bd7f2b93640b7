"""The Open Inference Protocol v2 over REST, with the binary tensor and classification extensions, under `/v2`.

    POST /v2/models/NAME[/versions/VERSION]/infer    JSON, then the raw tensors that it announces

Inputs are `image`, BYTES [N], encoded images (base64 in JSON), or `pixels`, UINT8 [N, 3, S, S]; exactly one. Outputs
are `probabilities`, FP32 [N, K] or, with `classification: k`, BYTES [N, k] of "score:index:label"; `class_index`,
INT64 [N]; `class`, BYTES [N]. Content-Type is not looked at: tritonclient sends none.

https://github.com/open-inference/open-inference-protocol, and Triton's extensions of it
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.manifest import Manifest
from service.call import LONGEST_TIMEOUT_MS, Asked, Content, Endpoint
from service.errors import BY_CODE, AnyError, BadJson, BadParameter, Empty, Rejected, TooManyImages, problem
from service.forms import from_base64, item
from service.metrics import V2_INFER_ROUTE, V2_ROUTE
from service.transport import Answer
from service.versions import Version

HEADER = "inference-header-content-length"
LENGTH = struct.Struct("<I")  # before each element of BYTES in a binary tensor
IMAGE, PIXELS = "image", "pixels"
DIMENSIONS = 4  # of pixels
PROBABILITIES, CLASS_INDEX, CLASS = "probabilities", "class_index", "class"
OUTPUTS = (PROBABILITIES, CLASS_INDEX, CLASS)
DATATYPES = {IMAGE: "BYTES", PIXELS: "UINT8", PROBABILITIES: "FP32", CLASS_INDEX: "INT64", CLASS: "BYTES"}


def paths(manifest: Manifest) -> tuple[str, str]:
    """Where the model is asked, and where one of its versions."""
    model = f"{V2_ROUTE}/models/{manifest.name}"
    return f"{model}/infer", f"{model}/versions/*/infer"


def tensors(manifest: Manifest) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs as the model's metadata tells them; -1 is the number of images."""
    size, classes = manifest.input_size, len(manifest.classes)
    shapes = {IMAGE: [-1], PIXELS: [-1, 3, size, size], PROBABILITIES: [-1, classes], CLASS_INDEX: [-1], CLASS: [-1]}
    found = [{"name": name, "datatype": DATATYPES[name], "shape": shape} for name, shape in shapes.items()]
    return found[:2], found[2:]


@dataclass(slots=True)
class Output:
    """One that is asked for: as raw bytes if `binary`, and of `probabilities` perhaps only the `best` classes."""

    name: str
    binary: bool
    best: int = 0


@dataclass(slots=True)
class Inference(Asked):
    """`id` is given back."""

    outputs: Sequence[Output] = ()
    id: str | None = None


@dataclass(slots=True)
class Tensor:
    """An output: `data` row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    raw: bytes | None = None  # the same for a binary reply

    def told(self) -> dict[str, Any]:
        """As the reply's JSON has it."""
        document: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": self.shape}
        if self.raw is None:
            return document | {"data": self.data}
        return document | {"parameters": {"binary_data_size": len(self.raw)}}


class OpenInference(Endpoint):
    """Requests that ask for a model."""

    route = V2_INFER_ROUTE

    def top_k(self, query: bytes) -> int:
        """The body alone tells; see `asked`."""
        return len(self.manifest.classes)

    def asked(self, body: bytes, headers: Mapping[bytes, bytes], top_k: int) -> Inference:
        """What an inference request asks for."""
        document, tail = divided(body, headers.get(HEADER.encode()))
        parameters = member(document, "parameters", dict, {})
        outputs = outputs_of(document, parameters, top_k)
        name, bodies = self.input_of(document, tail)
        wanted = max((output.best or top_k) if output.name == PROBABILITIES else 1 for output in outputs)
        return Inference(
            bodies,
            wanted,
            pixels=name == PIXELS,
            timeout=timeout_of(parameters),
            outputs=outputs,
            id=member(document, "id", str, None),
        )

    def input_of(self, document: Mapping[str, Any], tail: memoryview) -> tuple[str, list[bytes | Rejected]]:
        """The one input's name and its images."""
        inputs = member(document, "inputs", list, [])
        if len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise BadJson(f"Send exactly one input, `{IMAGE}` or `{PIXELS}`.")
        given = inputs[0]
        name, datatype, shape = [given.get(key) for key in ("name", "datatype", "shape")]
        if name not in (IMAGE, PIXELS):
            raise BadParameter(f"The inputs are `{IMAGE}` and `{PIXELS}`; send one of them.")
        if datatype != DATATYPES[name]:
            raise BadParameter(f"The datatype of `{name}` is {DATATYPES[name]}.")
        size = self.manifest.input_size
        each = [3, size, size] if name == PIXELS else []
        if not isinstance(shape, list) or not shape or type(shape[0]) is not int or shape[0] < 1 or shape[1:] != each:
            raise BadParameter(f"The shape of `{name}` is {['N', *each]}, with one image or more.".replace("'", ""))
        count, most = shape[0], self.settings.max_images
        if count > most:
            raise TooManyImages(f"The request has {count} images; at most {most} are accepted.")
        told = member(given, "parameters", dict, {}).get("binary_data_size")
        if told is None and tail:
            raise BadParameter(f"Bytes follow the JSON, but `{name}` has no binary_data_size.")
        if told is not None and (type(told) is not int or told != len(tail)):
            raise BadParameter(f"The binary_data_size of `{name}` differs from the {len(tail)} bytes after the JSON.")
        if name == PIXELS:
            most = count * 3 * size * size
            return name, rows(tail if told is not None else numbers(given.get("data"), most), count, 3 * size * size)
        return name, elements(tail, count) if told is not None else texts(given.get("data"), count)

    def answered(self, asked: Inference, answers: Sequence[Answer], request_id: str, version: Version) -> Content:
        """Every output; the protocol knows no failure of single images, so the first is the request's."""
        coming = iter(answers)
        for number, image in enumerate(asked.bodies):
            error: AnyError | None = None
            if not isinstance(image, bytes):
                error = image
            elif (answer := next(coming)).code:
                error = BY_CODE[answer.code](answer.detail)
            if error is not None:
                raise type(error)(f"Image {number}: {error}" if len(asked.bodies) > 1 else str(error))
        found = [self.output(output, answers) for output in asked.outputs]
        document = {"model_name": self.manifest.name, "model_version": version.manifest.version}
        document |= {} if asked.id is None else {"id": asked.id}
        head = json.dumps(document | {"outputs": [tensor.told() for tensor in found]}).encode()
        raw = [tensor.raw for tensor in found if tensor.raw is not None]
        if not raw:
            return Content(head)
        body = b"".join([head, *raw])
        return Content(body, "application/octet-stream", f"{HEADER}: {len(head)}\r\n")

    def output(self, output: Output, answers: Sequence[Answer]) -> Tensor:
        """One output for all images."""
        classes, datatype, shape = self.manifest.classes, DATATYPES[output.name], [len(answers)]
        data: list[Any] = [answer.predictions[0][0] for answer in answers]
        if output.best:
            best = [pair for answer in answers for pair in answer.predictions[: output.best]]
            data = [f"{score:.9}:{index}:{classes[index]}" for index, score in best]
            datatype, shape = "BYTES", [len(answers), output.best]
        elif output.name == PROBABILITIES:
            data = [score for answer in answers for score in by_class(answer)]
            shape = [len(answers), len(classes)]
        elif output.name == CLASS:
            data = [classes[index] for index in data]
        return Tensor(output.name, datatype, shape, data, packed(datatype, data) if output.binary else None)

    def problem(self, error: AnyError, request_id: str) -> dict[str, object]:
        """A problem document that clients of the protocol understand as well."""
        return problem(error, request_id) | {"error": str(error)}


def divided(body: bytes, length: bytes | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a request, and the raw tensors after it; `length` is the header that says where they begin."""
    if not body:
        raise Empty("The body is empty; send an inference request.")
    size = len(body)
    if length is not None:
        if not length.isdigit() or int(length[:18]) > len(body):
            raise BadParameter("Inference-Header-Content-Length is no length of a part of the body.")
        size = int(length[:18])
    try:
        document = json.loads(body[:size])
    except (ValueError, RecursionError):
        raise BadJson("The inference request is not valid JSON.") from None
    if not isinstance(document, dict):
        raise BadJson("The inference request is not a JSON object.")
    return document, memoryview(body)[size:]


def member(document: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """An optional member of a JSON object, of the kind that it must be."""
    value = document.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise BadJson(f"`{name}` must be {'an object' if kind is dict else 'a list' if kind is list else 'a string'}.")
    return value


def outputs_of(document: Mapping[str, Any], parameters: Mapping[str, Any], classes: int) -> list[Output]:
    """The outputs that are asked for; all, where none is named."""
    binary = bool(parameters.get("binary_data_output"))
    given = member(document, "outputs", list, [])
    if not given:
        return [Output(name, binary) for name in OUTPUTS]
    found: list[Output] = []
    for output in given:
        name = output.get("name") if isinstance(output, dict) else None
        if name not in OUTPUTS:
            raise BadParameter(f"The outputs are {', '.join(f'`{name}`' for name in OUTPUTS)}.")
        told = member(output, "parameters", dict, {})
        best = told.get("classification", 0)
        if type(best) is not int or best < 0 or (best and name != PROBABILITIES):
            raise BadParameter(f"`classification` is a number of classes, and for `{PROBABILITIES}` only.")
        if name in [other.name for other in found]:
            raise BadParameter(f"The output `{name}` is asked for twice.")
        found.append(Output(name, bool(told.get("binary_data", binary)), min(best, classes)))
    return found


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Seconds that a request allows by its `timeout`, which is in microseconds; 0 is none."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout <= LONGEST_TIMEOUT_MS * 1000:
        raise BadParameter(f"`timeout` is a number of microseconds, at most {LONGEST_TIMEOUT_MS * 1000}.")
    return timeout / 1e6 or None


def elements(tensor: memoryview, count: int) -> list[bytes | Rejected]:
    """The elements of a binary tensor of BYTES, so many: each a length, little-endian uint32, and its bytes."""
    found: list[bytes | Rejected] = []
    at = 0
    while at < len(tensor):
        if len(found) == count:
            raise BadParameter(f"`{IMAGE}` has more elements than the {count} that its shape says.")
        if at + LENGTH.size > len(tensor):
            raise BadParameter(f"`{IMAGE}` ends within an element's length.")
        (length,) = LENGTH.unpack_from(tensor, at)
        at += LENGTH.size
        if at + length > len(tensor):
            raise BadParameter(f"`{IMAGE}` ends within an element of {length} bytes.")
        found.append(item(bytes(tensor[at : at + length])))
        at += length
    if len(found) < count:
        raise BadParameter(f"`{IMAGE}` has {len(found)} elements, its shape says {count}.")
    return found


def texts(data: object, count: int) -> list[bytes | Rejected]:
    """The elements of a tensor of BYTES in JSON, so many, base64 each."""
    if isinstance(data, list) and len(data) != count:
        raise BadParameter(f"`{IMAGE}` has {len(data)} elements, its shape says {count}.")
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise BadJson(f"The data of `{IMAGE}` in JSON is a list of base64 strings.")
    return [from_base64(text) for text in data]


def numbers(data: object, most: int) -> memoryview:
    """A tensor of UINT8 in JSON, nested as its shape is or flat, of `most` values."""
    level = [data]
    for _ in range(DIMENSIONS):
        if not (level and isinstance(level[0], list)):
            break
        if sum(len(part) if isinstance(part, list) else 1 for part in level) > most:
            raise BadParameter(f"`{PIXELS}` has more values than the {most} that its shape says.")
        level = [number for part in level for number in (part if isinstance(part, list) else [part])]
    try:
        return memoryview(bytes(level))  # type: ignore[arg-type]  # which is what is tried
    except (TypeError, ValueError):
        raise BadJson(f"The data of `{PIXELS}` in JSON are whole numbers from 0 to 255, in lists.") from None


def rows(pixels: memoryview, count: int, size: int) -> list[bytes | Rejected]:
    """So many images of `size` bytes each."""
    if len(pixels) != count * size:
        raise BadParameter(f"`{PIXELS}` has {len(pixels)} values; its shape says {count * size}.")
    return [bytes(pixels[start : start + size]) for start in range(0, len(pixels), size)]


def by_class(answer: Answer) -> list[float]:
    """All probabilities in the order of the classes, to the nine digits that tell every float32 from the others."""
    scores = [0.0] * len(answer.predictions)
    for index, score in answer.predictions:
        scores[index] = float(f"{score:.9}")
    return scores


def packed(datatype: str, data: Sequence[Any]) -> bytes:
    """Elements as raw bytes, little-endian."""
    if datatype == "BYTES":
        encoded = [text.encode() for text in data]
        return b"".join([part for text in encoded for part in (LENGTH.pack(len(text)), text)])
    return struct.pack(f"<{len(data)}{'f' if datatype == 'FP32' else 'q'}", *data)
