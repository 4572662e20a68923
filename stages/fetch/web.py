"""http and https: redirects that are checked at every hop, resumption by range requests.

The first address is the user's own, so it may be that of a server in his own network. A redirect is a stranger's: it
may not leave http and https, nor turn https into http, nor go to another host whose address is private, such as the
metadata service of a cloud. What was resolved and checked is what is connected to.

``HTTPS_PROXY``, ``NO_PROXY`` and ``~/.netrc`` are heeded. Behind a proxy, names are the proxy's to resolve or refuse.
"""

import asyncio
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network, ip_address
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from rich.filesize import decimal
from yarl import URL

from convoy.errors import ConfigurationError, InputRefusedError, ServiceError
from convoy.secrets import mask_in, masked
from stages.fetch.part import Part

HOPS = 10  # redirects that are followed
LOGIN = "~/.netrc, or ${NAME}@ in the address, with NAME in the environment"
PIECE = 2**20  # bytes that have to arrive within the timeout
HEADERS = {"User-Agent": "convoy", "Accept-Encoding": "identity"}  # the file as it is: ranges count its bytes
PASSING = (408, 425, 429)  # of the client errors, those that another time helps against
NAT64 = IPv6Network("64:ff9b::/96")


def receive(url: str, part: Part, timeout: float) -> None:
    """Appends to ``part`` what it lacks of ``url``.

    Raises:
        ConfigurationError: the server says that there is no such file, or not for this user.
        InputRefusedError: a redirect to where it must not go, or too many of them; or too large.
        ServiceError: no answer, an error of the server, a cut, or 1 MiB took longer than ``timeout`` seconds.
    """
    try:
        asyncio.run(_receive(url, part, timeout))
    except TimeoutError:
        raise ServiceError(f"{part.shown}: {_silence(timeout)}. {_kept(part)}") from None
    except aiohttp.ClientPayloadError:
        raise ServiceError(f"{part.shown}: the connection was cut. {_kept(part)}") from None
    except aiohttp.InvalidURL as error:
        raise ConfigurationError(f"{part.shown} is no address: {mask_in(str(error), url)}") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ServiceError(f"{part.shown}: {mask_in(str(error), url)}. {_kept(part)}") from None


async def _receive(url: str, part: Part, timeout: float) -> None:
    connector = aiohttp.TCPConnector(resolver=Resolver(url), use_dns_cache=False)
    async with aiohttp.ClientSession(
        connector=connector,
        headers=HEADERS,
        timeout=aiohttp.ClientTimeout(),
        trust_env=True,
        auto_decompress=False,
        read_bufsize=PIECE,
    ) as session:
        async with asyncio.timeout(timeout):
            response = await _ask(session, url, part)
        while not response.content.at_eof():
            async with asyncio.timeout(timeout):
                goal = part.size + PIECE
                while part.size < goal and (data := await response.content.readany()):
                    part.write(data)


async def _ask(session: aiohttp.ClientSession, url: str, part: Part) -> aiohttp.ClientResponse:
    """Returns the answer whose body is to be appended, after ``part.begin``."""
    if part.size:
        wanted = {"Range": f"bytes={part.size}-"}
        response = await _follow(session, url, wanted | ({"If-Range": part.validator} if part.validator else {}))
        if response.status == 206 and _continues(response, part):
            part.begin(_total(response, part.size), part.validator, keep=True)
            return response
        if response.status in (206, 416):  # some other version of the file, or a server that cannot count
            response.close()
            response = await _follow(session, url, {})
    else:
        response = await _follow(session, url, {})
    if response.status != 200:
        answer = f"{part.shown}: the server answers {response.status} {response.reason}"
        if 400 <= response.status < 500 and response.status not in PASSING:
            raise ConfigurationError(f"{answer}. The address is wrong, or needs a login ({LOGIN}).")
        raise ServiceError(f"{answer}. {_kept(part)}")
    etag = response.headers.get("ETag", "W/")
    validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag  # If-Range wants a strong one
    part.begin(_total(response, 0), validator, keep=False)
    return response


async def _follow(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
    """Returns the answer after all redirects; each of them is checked."""
    address = url
    for _ in range(HOPS + 1):
        # An address is not quoted again if it need not be: it may be signed as it is.
        quoted = URL(address, encoded=address.isascii() and " " not in address)
        response = await session.get(quoted, headers=headers, allow_redirects=False)
        if response.status not in (301, 302, 303, 307, 308):
            return response
        response.close()
        to = urljoin(address, response.headers.get("Location", ""))
        came, goes = urlsplit(address), urlsplit(to)
        if goes.scheme not in ("http", "https") or (came.scheme == "https" and goes.scheme == "http"):
            raise InputRefusedError(
                f"{masked(url)}: redirected from {came.scheme} to {masked(to)}, which is refused: a redirect may not "
                "leave http and https, nor turn https into http. If you trust the new address, write it yourself."
            )
        if goes.hostname and goes.hostname != urlsplit(url).hostname:
            _refuse_private(url, goes.hostname, [goes.hostname])  # an address in numbers passes no resolver
        address = to
    raise InputRefusedError(f"{masked(url)}: more than {HOPS} redirects; the last to {masked(address)}.")


class Resolver(AbstractResolver):
    """Resolves each name once, and any but the user's own only to public addresses.

    Once, so that a name cannot be another machine's when it comes again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._trusted = {urlsplit(address).hostname for address in (url, *getproxies().values())}
        self._known: dict[str, list[ResolveResult]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of ``host``; see the class."""
        if host not in self._known:
            found = await lookup(host, port, family)
            if host not in self._trusted:
                _refuse_private(self._url, host, [entry["host"] for entry in found])
            self._known[host] = found
        return [entry | {"port": port} for entry in self._known[host]]

    async def close(self) -> None:
        """Holds nothing to close."""


async def lookup(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    """Asks the system's resolver."""
    return await aiohttp.ThreadedResolver().resolve(host, port, family)


def _refuse_private(url: str, host: str, addresses: Iterable[str]) -> None:
    """Raises an InputRefusedError if ``host``, to which ``url`` redirected, has an address that is not public."""
    for address in addresses:
        try:
            ip = ip_address(address)
        except ValueError:
            continue  # a name, which the resolver will see
        inner = [ip]
        if isinstance(ip, IPv6Address):  # forms in which an IPv4 address is hidden
            hidden = ip_address(ip.packed[-4:]) if ip in NAT64 else None
            inner += filter(None, (hidden, ip.ipv4_mapped, ip.sixtofour, ip.teredo and ip.teredo[1]))
            inner = inner[1:] or inner
        if any(not one.is_global or one.is_multicast for one in inner):
            known_as = f" ({address})" if address != host else ""
            raise InputRefusedError(
                f"{masked(url)}: redirected to {host}{known_as}, which is refused: it is no public address. If it is "
                "your own server, write its address yourself."
            )


def _continues(response: aiohttp.ClientResponse, part: Part) -> bool:
    """Whether a partial answer is what ``part`` lacks, as far as the server says."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return bool(
        match
        and int(match[1]) == part.size
        and (match[2] == "*" or part.total in (None, int(match[2])))
        and part.validator in (None, response.headers.get("ETag"), response.headers.get("Last-Modified"))
    )


def _total(response: aiohttp.ClientResponse, offset: int) -> int | None:
    return None if response.content_length is None else offset + response.content_length


def _silence(timeout: float) -> str:
    return f"no {decimal(PIECE)} came within {timeout:g} s (timeout)"


def _kept(part: Part) -> str:
    of = f" of {part.total:,}" if part.total else ""
    return f"{part.size:,}{of} bytes are kept; run again to go on." if part.size else "Run again."
