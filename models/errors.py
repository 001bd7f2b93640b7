"""What can be wrong with an artifact or an image.

    ArtifactError            the exported file cannot be trusted or used
    DeviceError              a device or dtype that is not to be had
    ImageError               a body that does not become pixels
    ├── UnsupportedFormat    not a format that is accepted here
    ├── TooManyPixels        the header announces more pixels than allowed
    ├── OversizedMetadata    compressed metadata expands beyond bounds
    └── Undecodable          an accepted format, damaged

`status` is the HTTP status (RFC 9110) that the boundary answers with, `code` the word for it in replies and metrics.
"""

from http import HTTPStatus
from pathlib import Path
from typing import ClassVar


class ArtifactError(Exception):
    """The artifact cannot be trusted or used; one line: file, what was expected, what was found."""

    def __init__(self, path: Path | str, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")


class DeviceError(Exception):
    """A device that is not there, or a dtype that it does not have; one line."""


class ImageError(Exception):
    """A body that does not become pixels; the text is fit for the client."""

    status: ClassVar[HTTPStatus] = HTTPStatus.UNPROCESSABLE_ENTITY
    code: ClassVar[str]


class UnsupportedFormat(ImageError):
    """The body is not an image of an accepted format."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_format"


class TooManyPixels(ImageError):
    """The image's header announces more pixels than the limit."""

    code = "too_many_pixels"


class OversizedMetadata(ImageError):
    """The image carries compressed metadata that expands beyond the decoder's bound."""

    code = "metadata"


class Undecodable(ImageError):
    """The body announces an accepted format but cannot be decoded."""

    code = "undecodable"
