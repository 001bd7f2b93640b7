"""Which pixels of a picture are wanted, and which way up: numbers and cuts, whatever the format."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = NDArray[np.uint8]


def crop_side(shorter: int, crop: float) -> int:
    """Side of the centred square that `preprocess` cuts from an image with this `shorter` side, in pixels."""
    return max(1, round(crop * shorter))


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a picture without what `preprocess` never takes of it.

    The same is cut from both ends of the longer side, until the sides differ by one at most: so it is the same
    however the picture is turned, and the centred square of the rest is that of the whole.
    """
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, width - left, height - top


def trimmed(pixels: Pixels) -> Pixels:
    """The `middle` of uint8 (H, W, 3)."""
    left, top, right, bottom = middle(pixels.shape[1], pixels.shape[0])
    return pixels[top:bottom, left:right]


def turned(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turn `picture` upright as the EXIF orientation of its `source` says; a damaged EXIF block is no orientation."""
    try:
        turn = TURNS.get(source.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # Pillow's EXIF parser raises many types, and metadata does not touch the pixels
        return picture
    return picture if turn is None else picture.transpose(turn)
