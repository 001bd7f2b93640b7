"""A request's body to the encoded images in it: raw bytes, multipart/form-data, or JSON with base64."""

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import BadForm, BadJson, ContentType, Empty, MissingFile, Rejected, TooManyImages

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

OTHER_FIELDS = 8
OTHER_FIELD_BYTES = 4096
BOUNDARIES = 10_000  # lines that begin like one: the parser, which is Python, takes long over each that is none
RAW_TYPES = ("", "application/octet-stream")
URLENCODED_ADVICE = (
    "application/x-www-form-urlencoded is not accepted. With curl use -F file=@photo.jpg, or --data-binary @photo.jpg "
    "with -H 'Content-Type: image/jpeg'."
)


class Images(NamedTuple):
    """A request's images in order, an error in the place of one that is none; `several` asks for `results`."""

    bodies: list[bytes | Rejected]
    several: bool


def images(body: bytes, content_type: str, max_images: int) -> Images:
    """The encoded images of a request.

    Raises:
        Rejected: the request as a whole cannot be understood; a single bad image of several is an item instead.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in RAW_TYPES:
        return Images([present(body)], several=False)
    if kind == "multipart/form-data":
        _, options = parse_options_header(content_type)
        return from_form(body, options.get(b"boundary", b""), max_images)
    if kind == "application/json":
        return from_json(body, max_images)
    if kind == "application/x-www-form-urlencoded":
        raise ContentType(URLENCODED_ADVICE)
    raise ContentType("Send an image (image/*, application/octet-stream), multipart/form-data or application/json.")


def present(body: bytes) -> bytes:
    """The body, which must not be empty."""
    if not body:
        raise Empty("The body is empty; send the bytes of an image.")
    return body


def item(body: bytes) -> bytes | Rejected:
    """One of several images; an empty one is that image's error."""
    return body or Empty("The image is empty.")


def collected(bodies: list[bytes | Rejected], several: bool) -> Images:
    """The images of a request; where it has one, that one's error is the request's."""
    if not several and isinstance(bodies[0], Rejected):
        # Another one: raised itself, its traceback would hold the frame that holds it, with the whole body.
        raise type(bodies[0])(str(bodies[0]))
    return Images(bodies, several)


def from_json(body: bytes, max_images: int) -> Images:
    """{"image": base64} or {"images": [base64, ...]}; a `data:` prefix is dropped."""
    try:
        document = json.loads(present(body))
    except (ValueError, RecursionError):
        raise BadJson("The body is not valid JSON.") from None
    if not isinstance(document, dict) or not ("image" in document) ^ ("images" in document):
        raise BadJson('Send {"image": base64} or {"images": [base64, ...]}.')
    several = "images" in document
    texts = document["images"] if several else [document["image"]]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadJson("An image must be a string of base64, and `images` a list of at least one.")
    if len(texts) > max_images:
        raise TooManyImages(f"The request has {len(texts)} images; at most {max_images} are accepted.")
    return collected([from_base64(text) for text in texts], several)


def from_base64(text: str) -> bytes | Rejected:
    """The bytes of one base64 string, or why there are none."""
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    try:
        return item(base64.b64decode("".join(text.split()), validate=True))
    except (binascii.Error, ValueError):
        return BadJson("An image is not valid base64. Images are sent as base64, never as an address to fetch.")


@dataclass
class Part:
    """One part of a form as the parser tells it, piece by piece."""

    header_name: bytes = b""
    header_value: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> bytes:
        """The field's name, from Content-Disposition (RFC 7578)."""
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        return options.get(b"name", b"")


class Form:
    """Collects a form's parts; refuses a flood while it parses."""

    def __init__(self, max_images: int) -> None:
        """At most `max_images` files and `OTHER_FIELDS` other fields."""
        self.max_images = max_images
        self.parts: list[Part] = []
        self.files: list[bytes | Rejected] = []
        self.others = 0
        self.ended = False

    def on_part_begin(self) -> None:
        self.parts.append(Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].header_value += data[start:end]

    def on_header_end(self) -> None:
        part = self.parts[-1]
        part.headers[part.header_name.lower()] = part.header_value
        part.header_name = part.header_value = b""

    def on_headers_finished(self) -> None:
        if self.parts[-1].name == b"file":
            if len(self.files) == self.max_images:
                raise TooManyImages(f"The form has more than {self.max_images} images.")
        else:
            self.others += 1
            if self.others > OTHER_FIELDS:
                raise BadForm(f"The form has more than {OTHER_FIELDS} fields that are no `file`.")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.content += data[start:end]
        if len(part.content) > OTHER_FIELD_BYTES and part.name != b"file":
            raise BadForm(
                f"A field that is no `file` exceeds {OTHER_FIELD_BYTES} bytes; send images as -F file=@photo.jpg"
            )

    def on_part_end(self) -> None:
        part = self.parts.pop()
        if part.name == b"file":
            self.files.append(item(bytes(part.content)))

    def on_end(self) -> None:
        self.ended = True


def from_form(body: bytes, boundary: bytes, max_images: int) -> Images:
    """The parts named `file`, in memory; nothing is written to disk."""
    form = Form(max_images)
    callbacks: MultipartCallbacks = {
        "on_part_begin": form.on_part_begin,
        "on_header_field": form.on_header_field,
        "on_header_value": form.on_header_value,
        "on_header_end": form.on_header_end,
        "on_headers_finished": form.on_headers_finished,
        "on_part_data": form.on_part_data,
        "on_part_end": form.on_part_end,
        "on_end": form.on_end,
    }
    try:
        if not boundary:
            raise BadForm("The Content-Type names no boundary.")
        if body.count(b"\r\n--" + boundary) > BOUNDARIES:
            raise BadForm(f"The form has more than {BOUNDARIES} lines that begin with its boundary; choose another.")
        parser = MultipartParser(boundary, callbacks)
        parser.write(present(body))
        parser.finalize()
    except FormParserError:
        raise BadForm("The form is malformed.") from None
    if not form.ended:
        raise BadForm("The form is incomplete: its closing boundary is missing.")
    if not form.files:
        raise MissingFile("The form has no part named `file`; with curl: -F file=@photo.jpg")
    return collected(form.files, len(form.files) > 1)
