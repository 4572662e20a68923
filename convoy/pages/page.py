"""What the pages of the stages have in common: their look, and how names, texts and pictures of the data get into them.

A page is one file that needs nothing else, and no network; what a training took, which differs each time, is beside it
in ``measured.js``. All that comes from the data is escaped: control characters are made visible by ``shown`` or
``start``, and the rest is done by the templates, which escape what they are given.
"""

import base64
import json
import re
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

NAME, TEXT = 120, 240  # characters of a path or label, and of an example's text
SLICE = 0.7  # height of each of the three slices of a volume, in that of a picture

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069]")  # also what turns the direction of text


def shown(name: object, limit: int = NAME) -> str:
    """Returns a path or label fit for the page: control characters visible, cut in the middle above ``limit``."""
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[1 - limit // 2 :]}"
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def start(text: str, limit: int = TEXT) -> str:
    """Returns the start of an example's text, control characters visible."""
    return shown(text if len(text) <= limit else f"{text[: limit - 1]}…", limit)


def share(part: float) -> str:
    """Returns 0.1234 as "12%", and small shares with a decimal."""
    return "0%" if part == 0 else "<0.1%" if part < 0.001 else f"{part:.1%}" if part < 0.1 else f"{part:.0%}"


def many(count: int, noun: str) -> str:
    """Returns "1 class", "1,234 classes", "2 copies"."""
    if count != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun}"


def words(name: str) -> str:
    """Returns the name of a column as one would say it."""
    return shown(name).replace("_", " ")


def later(key: str, facts: Mapping[str, Any]) -> Markup:
    """Returns the place of a number of ``outbox.measured``, given a model's run.json, which the browser fills in.

    It is in ``measured.js`` beside the model's report, since a page has equal bytes for equal input.
    """
    return Markup('<span data-model="{}" data-measured="{}">–</span>').format(facts["model"], key)


def measured_js(facts: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Returns the content of ``measured.js``: the numbers of one model, beside those of others."""
    return f"(globalThis.measured ??= {{}})[{json.dumps(facts['model'])}] = {json.dumps(measured)};\n"


@cache  # compiling it takes as long as all the rest of a small page
def template(file: Path) -> Template:
    """Returns the template of a page, which fills the blocks of ``page.html.jinja``."""
    environment = Environment(
        loader=FileSystemLoader([file.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "start": start, "share": share, "words": words, "comma": "{:,}".format}
    return environment.get_template(file.name)


def uri(content: bytes, form: str) -> str:
    """Returns a picture as an address that holds it; ``form`` is png or webp."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def picture(pixels: np.ndarray, edge: int) -> tuple[str, int, int, bool]:
    """Returns an example as data: URI, width and height to show it at in CSS pixels, and whether that enlarges it.

    Args:
        pixels: uint8, (height, width, channels), or of a volume (depth, height, width, channels).
        edge: height on the page; a small picture is enlarged to about that, a whole number of times.
    """
    if pixels.ndim == 4:
        edge, pixels = round(SLICE * edge), _slices(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((3 * edge, edge), Image.Resampling.BOX)
    content = BytesIO()
    image.save(content, "WEBP", lossless=image.height <= 32, quality=75, method=2)
    scale = round(edge / image.height) if image.height <= edge / 2 else edge / image.height  # whole pixels, if few
    return uri(content.getvalue(), "webp"), round(image.width * scale), round(image.height * scale), scale >= 2


def _slices(volume: np.ndarray) -> np.ndarray:
    """Returns the middle slices across depth, height and width of (d, h, w, c), side by side."""
    depth, height, width, channels = volume.shape
    parts = volume[depth // 2], volume[:, height // 2], volume[:, :, width // 2]
    gap = 2
    result = np.zeros((max(depth, height), sum(part.shape[1] + gap for part in parts) - gap, channels), np.uint8)
    left = 0
    for part in parts:
        result[: part.shape[0], left : left + part.shape[1]] = part
        left += part.shape[1] + gap
    return result
