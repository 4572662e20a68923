"""Addresses, messages, patches and parameters without the secrets that are in them."""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

# Names of what nobody else should know. Not `tokens`, of which texts are made, nor `key` alone, which mappings have.
NAMES = (
    r"(?:[A-Za-z0-9_.-]*(?:passw(?:or)?d|passphrase|secret)"
    r"|(?:[A-Za-z0-9_.-]*[_.-])?(?:pass|pwd|token|credentials?|authorization|signature|sig"
    r"|(?:api|access|account|private|secret|shared|sas|encryption|x)[_-]?key(?:[_-]?id)?))"
)
NAMED = re.compile(NAMES, re.IGNORECASE)
ASSIGNED = re.compile(
    rf"(?P<name>(?<![A-Za-z0-9_.-]){NAMES}['\"]?\s*(?:=>|[:=])\s*)(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&}}\]]+)",
    re.IGNORECASE,
)
LOGIN = re.compile(r"//[^/\s@'\"]+@")
BEARER = re.compile(r"\b(?P<kind>Bearer|Basic) +[A-Za-z0-9+/._~=-]{8,}")
PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
SHORTEST = 6  # characters of a value of the environment that is looked for: shorter ones are words of anything
CODE = (".py", ".ipynb", ".md", ".jinja", ".lock")  # where a name with a value is no secret as a rule
HIDDEN = "***"


def masked(url: str) -> str:
    """Returns ``url`` fit for a message: ``***`` for a user with a password, and for a query, which may be signed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    place = f"{HIDDEN}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return f"{parts.scheme}://{place}{parts.path}{'?***' if parts.query else ''}"


def mask_in(text: str, url: str) -> str:
    """Returns ``text``, a library's message, without the secrets of ``url``."""
    parts = urlsplit(url)
    text = text.replace(url, masked(url))
    for secret in (parts.netloc.rpartition("@")[0], parts.password, parts.query):
        text = text.replace(secret, HIDDEN) if secret else text
    return LOGIN.sub(f"//{HIDDEN}@", text)


def is_secret(name: str) -> bool:
    """Whether a key, variable or query parameter of this name holds what nobody else should know."""
    return NAMED.fullmatch(name) is not None


def redacted(text: str, code: bool = False) -> str:
    """Returns any text without logins of addresses, private keys, and what variables and keys named so hold.

    Args:
        text: a message, a log, a value.
        code: it is a program: ``token = words[0]`` stays, what the environment holds does not.
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and (is_secret(name) or name.upper().endswith("_KEY")):
            text = text.replace(value, HIDDEN)
    text = PEM.sub(HIDDEN, text)
    text = LOGIN.sub(f"//{HIDDEN}@", text)
    text = BEARER.sub(rf"\g<kind> {HIDDEN}", text)
    return text if code else ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)


def redacted_patch(patch: str) -> str:
    """Returns what ``git diff`` said without the secrets in it; programs are left as they are, but for addresses."""
    parts = re.split(r"(?m)^(?=diff --git )", patch)
    return "".join(redacted(part, code=part.partition("\n")[0].strip('"').endswith(CODE)) for part in parts)


def redacted_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters, with dots in the keys of nested ones, without those that are secret by name or in a text."""
    return {
        name: HIDDEN if is_secret(name) else redacted(value) if isinstance(value, str) else value
        for name, value in parameters.items()
    }
