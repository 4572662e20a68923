"""One picture: from the bytes of a file to pixels of one size. Needs nothing of ingest: a served model may use it."""

import contextlib
import ctypes
import hashlib
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from convoy.errors import InputRefusedError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no format that runs an outside program (EPS)
FILE_BYTES = 256 * 2**20  # a picture of MAX_IMAGE_PIXELS in 16 bits, uncompressed, is 171 MiB
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
JPEG_REMARKS = {bytes([number]) for number in (*range(0xE0, 0xEE), 0xEF, 0xFE)}  # APP14 says what the colours mean
JPEG_SCANS = 100  # a progressive JPEG has about 10; each one makes the decoder go over all pixels again
REDUCING_GAP = 2.0  # Pillow's own choice in Image.thumbnail
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRIP = 64  # rows
EXIF_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for the orientation
PILLOW_WARNINGS = ("ignore", None, Warning, re.compile("PIL"), 0)

# What Pillow and libtiff have to say about damaged files becomes the reason of a refusal.
logging.getLogger("PIL").addHandler(logging.NullHandler())
with contextlib.suppress(AttributeError, OSError):  # a Pillow without libtiff
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def read(data: bytes, side: int | None = None, mode: str = "colour") -> tuple[Image.Image, dict[str, int | str]]:
    """Returns the normalised picture (see ``normalise``) that the file ``data`` shows - its first frame - and facts.

    Args:
        data: the file.
        side: the longer side, in pixels, of its later size. A JPEG is then decoded at the eighths of its size
            that leave at least twice that many both ways: 1,069 photos of some 300x200 pixels then differ by 0.4 grey
            levels of 255 on average at 64 pixels, by 1.1 at 32. None: at full size.
        mode: ``grey``: of a JPEG only the brightness is decoded.

    Facts: ``height`` and ``width`` when upright, ``mode`` and ``format`` in Pillow's words, ``frames`` (2 stands for
    more than one: nobody counts them), ``orientation`` (EXIF: 1 to 8, 1 is upright). Colour profiles are ignored.

    Raises:
        InputRefusedError: it is none of FORMATS, damaged, cut short, too large, or its numbers have no known range.
    """
    with _refusing(), _open(data) as picture:
        kind, coded = picture.format, picture.mode
        frames = 1 + bool(getattr(picture, "is_animated", False))
        width, height = picture.size
        if kind == "JPEG" and side is not None:
            least = round(side * REDUCING_GAP)
            picture.draft("L" if mode == "grey" else None, (least, least))
        orientation = _orientation(picture) if kind == "TIFF" else 1  # Pillow turns TIFFs itself, in load
        picture.load()
        if kind != "TIFF":
            orientation = _orientation(picture)
            if orientation != 1:
                picture = picture.transpose(UPRIGHT[orientation])
        picture = normalise(picture)
    if kind != "JPEG":
        width, height = picture.size
    elif orientation > 4:  # lies on its side
        width, height = height, width
    facts = {"height": height, "width": width, "mode": coded, "format": kind}
    return picture, facts | {"frames": frames, "orientation": orientation}


def read_frames(data: bytes) -> Iterator[tuple[Image.Image, dict[str, int | str]]]:
    """Yields every frame of an animated picture or a TIFF of several pages, normalised; as ``read``."""
    with _refusing(), _open(data) as picture:
        kind = picture.format
        for frame in ImageSequence.Iterator(picture):
            check_pixels(frame.width, frame.height)
            mode = frame.mode
            shown = normalise(frame.copy())
            facts = {"height": shown.height, "width": shown.width, "mode": mode, "format": kind}
            yield shown, facts | {"frames": 2, "orientation": 1}


def content(picture: Image.Image, data: bytes | None, facts: Mapping[str, int | str]) -> bytes:
    """Returns the SHA-256 digest of what a normalised picture shows, regardless of the rest of its file.

    Of a JPEG it is taken over the coded pixels and their tables, without EXIF, profiles and comments: no other program
    writes the same, and it is a tenth of the bytes. Of everything else - a PNG and its copy as BMP show the same - over
    mode, size and pixels.

    Args:
        picture: what ``read`` or ``from_array`` returned.
        data: the file; None: there was none.
        facts: what ``read`` said.
    """
    if facts["format"] != "JPEG":
        digest = hashlib.sha256(f"{picture.mode} {picture.size} ".encode())
        digest.update(picture.tobytes())
        return digest.digest()
    digest = hashlib.sha256(f"JPEG {facts['orientation']} ".encode())
    view = memoryview(data)
    for marker, start, end in _segments(data):
        if marker not in JPEG_REMARKS:
            digest.update(view[start:end])
    return digest.digest()


def check_pixels(width: int, height: int) -> None:
    """Raises InputRefusedError for more pixels than Pillow's limit; Pillow itself only warns."""
    if width * height > Image.MAX_IMAGE_PIXELS:
        raise InputRefusedError(f"too many pixels: {width} x {height}; up to {Image.MAX_IMAGE_PIXELS:,} are read")


def from_array(pixels: np.ndarray) -> tuple[Image.Image, dict[str, int | str]]:
    """Returns the normalised picture and facts, as ``read``, of ``pixels``: uint8 or uint16, (h, w[, 1, 3 or 4]).

    Colour of 16 bits becomes 8 bits here, as grey does in ``to_size``: Pillow has no mode for it.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if not pixels.size:
        raise InputRefusedError(f"a picture of no pixels: shape {pixels.shape}")
    check_pixels(pixels.shape[1], pixels.shape[0])
    if pixels.ndim == 3 and pixels.dtype == np.uint16:
        pixels = _to_8_bits(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    facts = {"height": picture.height, "width": picture.width, "mode": picture.mode, "format": "array"}
    return normalise(picture), facts | {"frames": 1, "orientation": 1}


def normalise(picture: Image.Image) -> Image.Image:
    """Converts a picture to one of the modes L, I;16, RGB and RGBA, which keep what it shows.

    Raises:
        InputRefusedError: its numbers have no known range.
        ValueError: of Pillow, for colours that it cannot convert (LAB).
    """
    mode = picture.mode
    if mode in ("L", "RGB", "RGBA") and "transparency" not in picture.info:
        return picture
    if mode == "F":
        raise InputRefusedError("its pixels are floating-point numbers of no known range")
    if mode.startswith("I"):  # 16 bits in either byte order, or in 32-bit integers
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise InputRefusedError(f"its pixels, {values.min()} to {values.max()}, are no 16-bit values")
        return Image.fromarray(values.astype(np.uint16))
    if mode in ("1", "L") and "transparency" not in picture.info:
        return picture.convert("L")
    transparent = mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if transparent else "RGB")


def to_size(picture: Image.Image, *, size: tuple[int, int], mode: str, fit: str) -> Image.Image:
    """Resizes a normalised picture (see ``normalise``) and converts it to the mode L (grey) or RGB (colour).

    16 bits become 8 by division by 257; what is transparent becomes white; the picture is resized last, bilinear.

    Args:
        picture: of mode L, I;16, RGB or RGBA.
        size: (height, width).
        mode: ``grey`` (ITU-R 601-2 luma) or ``colour``.
        fit: ``stretch``, ``pad`` (black margins; at least one row and column of pixels shows the picture) or ``crop``
            (its middle).
    """
    if picture.mode == "I;16":
        picture = Image.fromarray(_to_8_bits(np.asarray(picture)))
    if picture.mode == "RGBA":
        background = Image.new("RGBA", picture.size, "white")  # what a viewer shows behind a transparent picture
        picture = Image.alpha_composite(background, picture)
    wanted = "L" if mode == "grey" else "RGB"
    if picture.mode != wanted:
        picture = picture.convert(wanted)
    target = (size[1], size[0])  # Pillow says width first
    if picture.size == target:
        return picture
    if fit == "stretch":
        return picture.resize(target, Image.Resampling.BILINEAR)
    if fit == "pad":
        return ImageOps.pad(_widened(picture, target), target, Image.Resampling.BILINEAR)
    return ImageOps.fit(picture, target, Image.Resampling.BILINEAR)


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Returns uint16 of any shape as uint8: 65535 / 255 = 257."""
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), STRIP):  # the quotients of all rows at once would take 16 bytes a pixel
        result[start : start + STRIP] = np.rint(values[start : start + STRIP] / 257)
    return result


def _widened(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    """Returns a strip that ``ImageOps.pad`` would make less than half a pixel wide, or high, one pixel wide, or high.

    Pillow rounds half a pixel and less to nothing, and its answer is black.

    Args:
        picture: what is padded; most come back as they are.
        target: (width, height) of the padded picture.
    """
    if not round(picture.width / picture.height * target[1]):
        return picture.resize((1, target[1]), Image.Resampling.BILINEAR)
    if not round(picture.height / picture.width * target[0]):
        return picture.resize((target[0], 1), Image.Resampling.BILINEAR)
    return picture


def to_array(picture: Image.Image) -> np.ndarray:
    """Returns a picture of mode L or RGB as uint8, shape (height, width, 1 or 3)."""
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _open(data: bytes) -> Image.Image:
    """Opens a file as far as its header."""
    if len(data) > FILE_BYTES:
        raise InputRefusedError(f"too large: {len(data):,} bytes; up to {FILE_BYTES:,} are read")
    if warnings.filters[:1] != [PILLOW_WARNINGS]:  # not catch_warnings, which is not made for threads
        warnings.filterwarnings("ignore", module="PIL")
    picture = Image.open(BytesIO(data), formats=FORMATS)
    check_pixels(picture.width, picture.height)
    _check_whole(data, picture.format)
    return picture


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turns whatever Pillow raises into InputRefusedError with the reason."""
    try:
        yield
    except (InputRefusedError, GeneratorExit):
        raise
    except Image.UnidentifiedImageError:
        raise InputRefusedError(f"not a picture in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise InputRefusedError(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow raises nearly anything on hostile bytes, also IndexError and KeyError
        raise InputRefusedError(f"damaged: {str(error) or type(error).__name__}") from error


def _orientation(picture: Image.Image) -> int:
    """Returns the orientation of the camera, 1 to 8 as in EXIF; 1 if that part of the file is damaged."""
    if picture.format != "TIFF" and EXIF_KEYS.isdisjoint(picture.info):
        return 1
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # see _refusing; the picture itself may be whole
        return 1
    return orientation if orientation in UPRIGHT else 1


def _check_whole(data: bytes, kind: str) -> None:
    """Looks for damage that Pillow overlooks.

    Raises:
        InputRefusedError: a JPEG without an end, or a PNG with a wrong checksum.
    """
    if kind in ("JPEG", "MPO"):
        if not data.endswith(JPEG_END) and data.find(JPEG_END, _scan(data)) < 0:
            raise InputRefusedError("damaged: the file is cut off, it has no end-of-image mark")
        if data.count(JPEG_SCAN) > JPEG_SCANS:
            raise InputRefusedError(f"more than {JPEG_SCANS} scans")
    elif kind == "PNG":
        place, name = 8, b""
        while name != b"IEND":
            length, name = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
            place += 12 + length
            if place > len(data):
                raise InputRefusedError("damaged: the file is cut off, it has no end chunk")
            if zlib.crc32(memoryview(data)[place - length - 8 : place - 4]) != int.from_bytes(data[place - 4 : place]):
                raise InputRefusedError(f"damaged: wrong checksum of the chunk {name.decode('latin-1')}")


def _scan(data: bytes) -> int:
    """Returns where the pixels of a JPEG begin: behind all segments; one may hold a thumbnail with an end."""
    return [start for _, start, _ in _segments(data)][-1]


def _segments(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (marker, start, end) of the segments of a JPEG in front of its pixels, then of these."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and not data.startswith(JPEG_SCAN, place):
        marker = data[place + 1 : place + 2]
        if marker in (b"\xff", b"\0", b"\1") or b"\xd0" <= marker <= b"\xd8":  # padding, restarts: no length follows
            place += 1
            continue
        start, place = place, place + 2 + int.from_bytes(data[place + 2 : place + 4])
        yield marker, start, place
    yield JPEG_SCAN[1:], max(place, 0), data.rfind(JPEG_END) + 2  # what may stand behind the end is no picture
