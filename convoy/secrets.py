"""Addresses, messages, patches and parameters without the secrets that are in them."""

import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

# Names of secrets. Not `tokens`, which are parts of texts, nor `key` alone, which mappings have.
NAMES = (
    r"(?:[A-Za-z0-9_.-]*(?:passw(?:or)?d|passphrase|secret)|sshpass"
    r"|(?:[A-Za-z0-9_.-]*[_.-])?(?:pass|pwd|token|credentials?(?:[_-]?data)?|authorization|signature|sig"
    r"|(?:auth|connection)[_-]?string|webhook(?:[_-]?url)?"
    r"|(?:api|access|account|private|secret|shared|sas|encryption|x)[_-]?key(?:[_-]?id)?))"
)
NAMED = re.compile(NAMES, re.IGNORECASE)
FOLDERS = ("PWD",)  # variables of such names that every shell sets, and that hold no password
ASSIGNED = re.compile(
    rf"(?P<name>(?<![A-Za-z0-9_.-]){NAMES}['\"]?\s*(?:=>|[:=])\s*)(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&}}\]]+)",
    re.IGNORECASE,
)
# The second has a password with a slash or a quote in it, which databases take; behind a port an @ may follow.
LOGIN = re.compile(r"//(?:[^/\s'\"]+|[^/\s:'\"]*:(?!\d*(?:[/\s'\",;)]|$))[^\s@]*)@")
BEARER = re.compile(r"\b(?P<kind>Bearer|Basic) +[A-Za-z0-9+/._~=-]{8,}")
PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
SHORTEST = 6  # characters of a value of the environment that is looked for: shorter ones are words of anything
LONG = 16  # characters: names of people and words are shorter, tokens are not
WORD = re.compile(rf"[A-Za-z]{{,{LONG - 1}}}|[0-9]{{,{LONG - 1}}}")
# Values under such names that protect nothing: what programs come with, and words that messages are made of.
COMMON = frozenset(
    ("access", "admin123", "administrator", "anonymous", "artifacts", "changeit", "changeme", "champion", "convoy",
     "credentials", "database", "default", "disabled", "enabled", "evaluate", "example", "localhost", "minioadmin",
     "mlflow", "nothing", "password", "pipeline", "postgres", "postgresql", "prefect", "private", "public", "python",
     "register", "required", "secret", "server", "sqlite", "stages", "string", "training", "unknown", "username")
)  # fmt: skip
CODE = (".py", ".ipynb", ".md", ".jinja", ".lock")  # where a name with a value is no secret as a rule
HIDDEN = "***"


def masked(url: str) -> str:
    """Returns ``url`` fit for a message: ``***`` for a user with a password, and for a query, which may be signed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    place = f"{HIDDEN}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return LOGIN.sub(f"//{HIDDEN}@", f"{parts.scheme}://{place}{parts.path}{'?***' if parts.query else ''}")


def without_login(url: str) -> str:
    """Returns ``url`` as one can open it in a browser, which asks for the login."""
    return masked(url).replace(f"//{HIDDEN}@", "//")


def mask_in(text: str, url: str) -> str:
    """Returns ``text``, a library's message, without the secrets of ``url``."""
    query = urlsplit(url).query
    text = text.replace(url, masked(url))
    for secret in (*_logins(url), *([query, unquote(query)] if query else [])):
        text = text.replace(secret, HIDDEN)
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
    for form, secret in _of_environment(tuple(os.environ.items())):
        if form in text and not _is_plain(secret):
            around = r"(?<![A-Za-z0-9]){}(?![A-Za-z0-9])" if WORD.fullmatch(form) else "{}"
            text = re.sub(around.format(re.escape(form)), HIDDEN, text)
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


@lru_cache(maxsize=1)
def _of_environment(variables: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Returns each way in which a library may write a secret of the environment, the longest first, and that secret.

    Args:
        variables: names and values.
    """
    secrets: list[str] = []
    for name, value in variables:
        named = (is_secret(name) or name.upper().endswith("_KEY")) and name not in FOLDERS
        if named:
            secrets.append(value.strip())
        if name.upper().endswith("AUTH_STRING"):  # user:password
            secrets.append(value.partition(":")[2])
        if named or "://" in value:  # a connection string, an address with a query
            secrets += [match["value"].strip("'\"") for match in ASSIGNED.finditer(value)]
        secrets += _logins(value)
    forms = {
        form: secret
        for secret in secrets
        if len(secret) >= SHORTEST
        for form in (unquote(secret), quote_plus(secret), quote(secret), quote(secret, safe=""), secret)
    }
    return sorted(forms.items(), key=lambda pair: len(pair[0]), reverse=True)  # one may be a part of another


def _logins(text: str) -> Iterator[str]:
    """Yields logins of addresses in a text, their passwords, and names of users that are tokens."""
    for match in re.finditer(rf"{LOGIN.pattern}|^[^/\s:'\"]+:[^/\s'\"]+@", text):  # proxies have no // either
        login = match[0].removeprefix("//").removesuffix("@")
        user, _, password = login.partition(":")
        secrets = [login, password]
        if len(user) >= LONG or password in ("", "x-oauth-basic"):  # as GitHub takes tokens
            secrets.append(user)
        for secret in filter(None, secrets):
            yield from (secret, unquote(secret))


def _is_plain(value: str) -> bool:
    """Whether a value protects nothing, or is no secret under whatever name: it stays readable in messages.

    These are paths that lead somewhere, names that every path of this checkout or its data shows, the user's, and
    words. A path whose folder is not there is hidden: keys of AWS may begin with a slash.
    """
    try:
        path = Path(value).expanduser()
        if path.is_absolute():
            return path.is_dir() or (path.parent != Path("/") and path.parent.is_dir())
        if not re.fullmatch(r"[\w-]+", value):
            return False
        people = (os.environ.get(name) for name in ("USER", "LOGNAME"))
        return (
            value.lower() in COMMON
            or value in (*people, *Path.cwd().parts, *Path.home().parts)
            or any(Path("data").glob(f"*/{value}"))
        )
    except (OSError, RuntimeError, ValueError):  # it is no path, or leads where this user may not look: it stays hidden
        return False


class _LogRecord(logging.LogRecord):
    """What a library logs, without secrets: MLflow and Prefect quote the address that they could not reach."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            self.exc_text = redacted("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Returns the message, as every handler asks for it."""
        return redacted(super().getMessage())


logging.setLogRecordFactory(_LogRecord)  # here, so that no process which has anything to hide goes without
