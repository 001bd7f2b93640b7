"""What is accepted unless something else is asked for; apart from `models.decode` so that it is read without torch."""

FORMATS = ("JPEG", "PNG", "WEBP")
KNOWN_FORMATS = (*FORMATS, "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000
