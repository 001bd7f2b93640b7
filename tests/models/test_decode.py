"""Every way a picture can be stored becomes the same RGB; everything else is refused by name."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.classifier import Classifier
from models.decode import STRIP_PIXELS, decode, decode_any, decode_rgb
from models.errors import ImageError, OversizedMetadata, TooManyPixels, Undecodable, UnsupportedFormat
from models.formats import KNOWN_FORMATS
from models.framing import EXIF_ORIENTATION, TURNS, crop_side, middle
from models.jpeg import decode_jpeg, jpeg_scale
from models.limits import Turn
from tests import costly

Pixels = NDArray[np.uint8]


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(body: bytes, **options: object) -> Pixels:
    """Height, width, channel."""
    pixels: Pixels = decode(body, input_size=512, **options).permute(1, 2, 0).numpy()  # type: ignore[arg-type]
    return pixels


@pytest.fixture
def picture() -> Pixels:
    """A picture whose every corner differs: uint8 (30, 40, 3)."""
    rows, columns = np.mgrid[0:30, 0:40]
    return np.stack([rows * 8, columns * 6, (rows + columns) * 3], axis=-1).astype(np.uint8)


def test_an_rgb_png_decodes_to_its_own_pixels(picture: Pixels) -> None:
    found = decode(encoded(Image.fromarray(picture)), input_size=32)

    assert found.dtype == torch.uint8
    assert (3, 30, 40) == tuple(found.shape)
    np.testing.assert_array_equal(picture, found.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_a_grey_picture_is_the_same_in_every_mode(mode: str) -> None:
    grey = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 20, 0), 20, 1)
    file_format = "JPEG" if mode == "CMYK" else "PNG"
    options = {"quality": 100, "subsampling": 0} if mode == "CMYK" else {}
    found = decoded(encoded(Image.fromarray(grey).convert(mode), file_format, **options))

    difference = np.abs(np.stack([grey] * 3, -1).astype(int) - found)
    assert difference.max() <= (16 if mode == "CMYK" else 0)


def test_sixteen_bit_grey_is_scaled_by_257_not_clipped() -> None:
    values = np.arange(0, 65_536, 64, dtype=np.uint16).reshape(32, 32)
    found = decoded(encoded(Image.fromarray(values)))

    expected = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.stack([expected] * 3, -1), found)


def test_transparency_shows_white_and_not_the_hidden_colour() -> None:
    hidden = Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    assert np.all(decoded(encoded(hidden)) == 255)


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])

    assert np.all(decoded(encoded(image, transparency=1)) == 255)


def test_half_transparent_black_over_white_is_grey() -> None:
    found = decoded(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))

    assert np.all(np.abs(found.astype(int) - 127) <= 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_turns_the_picture_upright(picture: Pixels, orientation: int, file_format: str) -> None:
    upright = Image.fromarray(picture)
    undo = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    turn = TURNS.get(orientation)
    stored = upright if turn is None else upright.transpose(undo.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}

    np.testing.assert_array_equal(picture, decoded(encoded(stored, file_format, exif=exif.tobytes(), **options)))


def test_fill_bytes_before_a_marker_hide_no_orientation(picture: Pixels) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    body = encoded(Image.fromarray(picture), "JPEG", exif=exif)

    np.testing.assert_array_equal(decoded(body), decoded(body[:2] + b"\xff" + body[2:]))


def test_a_damaged_exif_block_is_no_orientation(picture: Pixels) -> None:
    body = encoded(Image.fromarray(picture), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")

    np.testing.assert_array_equal(picture, decoded(body))


def test_the_first_frame_of_an_animation_is_taken(picture: Pixels) -> None:
    frames = [Image.fromarray(picture), Image.new("RGB", (40, 30), "red")]
    body = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    np.testing.assert_array_equal(picture, decoded(body))


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_unless_asked_for(picture: Pixels, file_format: str) -> None:
    body = encoded(Image.fromarray(picture), file_format)

    with pytest.raises(UnsupportedFormat, match="Accepted: JPEG, PNG, WEBP"):
        decoded(body)
    assert picture.shape == decoded(body, formats=KNOWN_FORMATS).shape


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", b"PK\x03\x04"]
)
def test_what_is_no_image_is_an_unsupported_format(body: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        decoded(body)


def test_heic_is_refused_with_advice() -> None:
    with pytest.raises(UnsupportedFormat, match="convert the photo to JPEG"):
        decoded(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7])
def test_a_truncated_image_is_undecodable(picture: Pixels, file_format: str, kept: float) -> None:
    body = encoded(Image.fromarray(picture), file_format)
    cut = body[: max(14, int(len(body) * kept))]

    with pytest.raises(Undecodable):
        decoded(cut)


def test_the_size_is_refused_by_the_header_before_any_pixel_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))

    with pytest.raises(TooManyPixels, match="60000 x 60000"):
        decoded(body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))


def test_a_webp_canvas_is_refused_by_the_header_too() -> None:
    with pytest.raises(TooManyPixels, match="16777216 x 255"):
        decoded(costly.canvas(1 << 24, 255))


def test_of_large_pixels_and_interlaced_ones_a_png_may_have_fewer() -> None:
    for colour, interlaced, most in ((6, False, 1250), (2, False, 1666), (4, True, 2000), (0, True, 2500)):
        wide, high = 50, most // 50
        body = costly.png(wide, high, colour, 16, interlaced=interlaced)
        assert (high, wide, 3) == decoded(body, max_pixels=2500).shape
        with pytest.raises(TooManyPixels, match=f"at most {most} are accepted"):
            decoded(costly.png(wide, high + 1, colour, 16, interlaced=interlaced), max_pixels=2500)


def test_scans_count_as_so_many_times_the_pixels() -> None:
    body = costly.scans((40, 30), 50)

    assert (30, 40, 3) == decoded(body).shape
    with pytest.raises(TooManyPixels, match="1200 pixels in 50 scans"):
        decoded(body, max_pixels=40 * 30 * 2)


def test_a_picture_of_several_strips_is_converted_as_one(picture: Pixels) -> None:
    height = STRIP_PIXELS // 300 * 2 + 7
    colours = Image.fromarray(picture).resize((300, height))
    alpha = Image.linear_gradient("L").resize((300, height))
    colours.putalpha(alpha)
    white = Image.new("RGBA", colours.size, "white")
    white.alpha_composite(colours)

    np.testing.assert_array_equal(np.array(white.convert("RGB")), decoded(encoded(colours)))


sides = st.integers(1, 60)


@given(sides, sides, st.floats(0.01, 1.0))
def test_the_square_that_preprocessing_cuts_is_the_same_in_the_middle(width: int, height: int, crop: float) -> None:
    side = crop_side(min(width, height), crop)
    left, top, right, bottom = middle(width, height)

    assert (width - side) // 2 == left + (right - left - side) // 2
    assert (height - side) // 2 == top + (bottom - top - side) // 2
    assert crop_side(min(right - left, bottom - top), crop) == side


@given(
    st.integers(0, 50),
    st.tuples(sides, sides),
    st.sampled_from([("PNG", "RGB"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK")]),
    st.integers(1, 8),
    st.sampled_from([1.0, 0.875, 0.5]),
)
def test_the_middle_alone_gives_the_models_pixels_of_the_whole(
    seed: int, size: tuple[int, int], kind: tuple[str, str], orientation: int, crop: float
) -> None:
    noise = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    body = encoded(Image.fromarray(noise).convert(kind[1]), kind[0], exif=exif.tobytes())
    model = Classifier(torch.nn.Identity(), input_size=8, crop=crop, mean=(0, 0, 0), std=(1, 1, 1))
    whole, some = (
        model.preprocess(
            torch.from_numpy(decode_rgb(body, 8, crop, KNOWN_FORMATS, 1 << 20, whole=whole).transpose(2, 0, 1).copy())
        )
        for whole in (True, False)
    )

    torch.testing.assert_close(whole, some, atol=0, rtol=0)


def test_a_large_picture_takes_one_place_even_where_it_is_decoded_twice() -> None:
    whole = encoded(Image.new("RGB", (4001, 1001)), "JPEG")
    decoded_large = partial(decode_rgb, formats=("JPEG",), max_pixels=1 << 23, input_size=512, crop=1.0)
    with Turn() as held:
        held.wait(1 << 23)  # one place is left
        with ThreadPoolExecutor(1) as pool, Turn() as turn:
            refused = pool.submit(decoded_large, whole[:-2], turn=turn).exception(timeout=30)

            assert isinstance(refused, Undecodable)
            assert turn.taken
    with Turn() as turn:
        decoded_large(encoded(Image.new("RGB", (40, 30)), "JPEG"), turn=turn)
        assert not turn.taken


def test_compressed_text_that_expands_is_refused_as_metadata(picture: Pixels) -> None:
    info = PngInfo()
    info.add_text("bomb", "a" * (80 << 20), zip=True)

    with pytest.raises(OversizedMetadata):
        decoded(encoded(Image.fromarray(picture), pnginfo=info))


@given(st.integers(1, 5000), st.integers(1, 512), st.floats(0.01, 1.0))
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_keeps_twice_the_input_size(
    shorter: int, input_size: int, crop: float
) -> None:
    def side(scale: int) -> int:
        return crop_side(-(-shorter // scale), crop)

    scale = jpeg_scale(shorter, input_size, crop)

    assert scale == 1 or side(scale) >= 2 * input_size
    assert all(side(smaller) < 2 * input_size for smaller in (2, 4, 8) if smaller > scale)


@pytest.mark.parametrize(
    ("size", "expected"), [((2000, 1500), (250, 188)), ((100, 999), (100, 999)), ((129, 900), (65, 450))]
)
def test_a_jpeg_comes_out_at_its_scaled_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    body = encoded(Image.new("RGB", size, "teal"), "JPEG")

    assert expected[::-1] == tuple(decode(body, input_size=32).shape[1:])


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\x00\x00\x00WEBPVP8 "]),
)
def test_arbitrary_bytes_raise_nothing_but_image_errors(body: bytes, magic: bytes) -> None:
    with pytest.raises(ImageError):
        decode(magic + body, input_size=32)


@given(st.data(), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_a_mutated_image_decodes_or_raises_an_image_error(data: st.DataObject, file_format: str) -> None:
    body = bytearray(encoded(Image.radial_gradient("L").resize((24, 24)).convert("RGB"), file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    try:
        found = decode(bytes(body), input_size=32)
    except ImageError:
        return
    assert found.dim() == 3


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([None, 1, 3, 6]),
)
def test_the_fast_jpeg_decoder_gives_pillows_pixels_to_the_bit(
    seed: int, size: tuple[int, int], mode: str, subsampling: int, progressive: bool, input_size: int, turn: int | None
) -> None:
    noise = np.random.RandomState(seed % 1000).randint(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    if turn:
        exif[EXIF_ORIENTATION] = turn
    options = {"exif": exif, "subsampling": subsampling, "progressive": progressive}
    body = encoded(Image.fromarray(noise).convert(mode), "JPEG", **options)
    fast = decode_jpeg(body, input_size, 1.0, 1 << 20)

    assert fast is not None
    np.testing.assert_array_equal(decode_any(body, input_size, 1.0, ("JPEG",), 1 << 20), fast)


@pytest.mark.parametrize("photo", range(0, 100, 5))
def test_the_fast_jpeg_decoder_gives_pillows_pixels_of_real_photos(test_data: Path, photo: int) -> None:
    body = sorted((test_data / "photos").glob("*.JPEG"))[photo].read_bytes()
    fast = decode_jpeg(body, 224, 0.875, 1 << 26)

    assert fast is not None
    np.testing.assert_array_equal(decode_any(body, 224, 0.875, ("JPEG",), 1 << 26), fast)


def test_what_the_fast_jpeg_decoder_refuses_is_pillows_to_decide(picture: Pixels) -> None:
    whole = encoded(Image.fromarray(picture), "JPEG")
    inked = encoded(Image.fromarray(picture).convert("CMYK"), "JPEG")

    assert [None, None] == [decode_jpeg(body, 32, 1.0, 1 << 20) for body in (whole[:-2], inked)]
    assert (30, 40, 3) == decoded(inked).shape
