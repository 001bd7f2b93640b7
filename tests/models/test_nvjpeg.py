"""Which bodies a GPU may decode; all others are the CPU's."""

import pytest
from PIL import Image

from models import nvjpeg
from tests.pictures import encode, noise

PHOTO = noise(1, (300, 250), "JPEG")
EXIF = Image.Exif()
EXIF[0x0112] = 6
BLANK = Image.new("RGB", (300, 250))


@pytest.mark.parametrize("body", [PHOTO, noise(2, (225, 224), "JPEG"), encode(BLANK.convert("L"), "JPEG")])
def test_ordinary_jpegs_are_taken(body: bytes) -> None:
    assert nvjpeg.takes(body, 224, 0.875, 1 << 20)
    assert nvjpeg.takes(memoryview(body), 224, 0.875, 1 << 20)


OTHERS = {
    "empty": b"",
    "png": noise(1, (300, 250)),
    "cut": PHOTO[:-9],
    "head alone": PHOTO[:40] + nvjpeg.END_OF_IMAGE,
    "turned": encode(BLANK, "JPEG", exif=EXIF),
    "several scans": encode(BLANK, "JPEG", progressive=True),
    "cmyk": encode(BLANK.convert("CMYK"), "JPEG"),
    "scaled while decoding": noise(1, (1200, 1100), "JPEG"),
    "more pixels than are accepted": noise(1, (1100, 1000), "JPEG"),
}


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_all_others_are_not(body: bytes) -> None:
    assert not nvjpeg.takes(body, 224, 0.875, 1 << 20)
