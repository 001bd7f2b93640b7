"""JPEGs decoded on a GPU by nvJPEG, many at once; an A100 or later has circuits for it.

Only what both decoders take alike is taken: one scan, decoded in full size, complete, not turned by EXIF. The pixels
differ by a few levels, as the inverse transform and the enlarging of colours do; `models.engine` measures by how much
probabilities drift, and does without where that is too far.
"""

import struct
from collections.abc import Sequence

import simplejpeg
import torch
from torch import Tensor

from models.errors import ImageError
from models.jpeg import APP1, JPEG_COLOURS, JPEG_MAGIC, has_scans, jpeg_scale, segments
from models.limits import LARGE_PIXELS

END_OF_IMAGE = b"\xff\xd9"


def takes(body: bytes | memoryview, input_size: int, crop: float, max_pixels: int) -> bool:
    """Whether it is a JPEG that may be decoded here; every other body is the CPU's to decode or to refuse."""
    if body[:3] != JPEG_MAGIC or body[-2:] != END_OF_IMAGE:
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(body)
        if colours not in JPEG_COLOURS or width * height > min(max_pixels, LARGE_PIXELS):
            return False
        if jpeg_scale(min(width, height), input_size, crop) > 1:
            return False
        found = segments(body)
        turned = any(marker == APP1 for marker, _, _ in found)
        return not turned and not has_scans(body, found, width * height, max_pixels)
    except (ValueError, IndexError, struct.error, ImageError):
        return False


def decode(bodies: Sequence[bytes | memoryview], device: torch.device) -> list[Tensor]:
    """The pictures' pixels on `device`, on its current stream: uint8 (3, H, W) each.

    Raises:
        RuntimeError: one of them is damaged, or there is no nvJPEG.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies]
    decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded
