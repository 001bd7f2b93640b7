"""Arbitrary bodies never raise anything but a refusal."""

from hypothesis import given
from hypothesis import strategies as st

from service.errors import Rejected
from service.forms import images

content_types = st.sampled_from(
    ["", "image/png", "application/json", "multipart/form-data; boundary=b", "multipart/form-data", "text/html", ";;="]
) | st.text(alphabet=st.characters(max_codepoint=255), max_size=40)
pieces = st.sampled_from(
    [
        b"--b",
        b"\r\n",
        b"--",
        b'Content-Disposition: form-data; name="file"',
        b"\r\n\r\n",
        b"x",
        b"name",
        b":",
        b"\0",
        b"\xff",
    ]
)
bodies = st.binary(max_size=80) | st.lists(pieces, max_size=20).map(b"".join) | st.text(max_size=30).map(str.encode)


@given(bodies, content_types)
def test_any_body_gives_images_or_is_rejected(body: bytes, content_type: str) -> None:
    try:
        found = images(body, content_type, max_images=3)
    except Rejected:
        return
    assert 1 <= len(found.bodies) <= 3
    assert all(isinstance(image, Rejected) or image for image in found.bodies)
