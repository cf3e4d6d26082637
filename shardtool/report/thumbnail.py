"""A small picture of a source photo, in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import simplejpeg
from PIL import Image

from shardtool.photo import Refused, encode

Read = Callable[[bytes], bytes]  # path under the source -> bytes of the photo; raises Refused

THUMBNAIL = 96  # pixels, the longer side


def picture(read: Read, source: bytes) -> str:
    """The thumbnail as an HTML element, or words in its place."""
    data = thumbnail(read, source)
    if not data:
        return '<span class="none">no picture</span>'
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def thumbnail(read: Read, source: bytes) -> bytes:
    """A small JPEG of a photo; b"" if it is gone or its header is no image's."""
    try:
        photo = encode(read(source), "header")
        # not strict: the part of a cut photo that is there tells more than no picture
        pixels = simplejpeg.decode_jpeg(
            photo.data, "RGB", min_height=THUMBNAIL, min_width=THUMBNAIL, strict=False
        )
    except (Refused, ValueError):
        return b""
    image, out = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
