"""Addresses and messages without the secrets that are in them."""

import re
from urllib.parse import urlsplit


def masked(url: str) -> str:
    """Returns ``url`` fit for a message: ``***`` for a user with a password, and for a query, which may be signed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    place = f"***@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{place}{parts.path}{'?***' if parts.query else ''}"


def mask_in(text: str, url: str) -> str:
    """Returns ``text``, a library's message, without the secrets of ``url``."""
    parts = urlsplit(url)
    text = text.replace(url, masked(url))
    for secret in (parts.netloc.rpartition("@")[0], parts.password, parts.query):
        text = text.replace(secret, "***") if secret else text
    return re.sub(r"//[^/\s@]+@", "//***@", text)
