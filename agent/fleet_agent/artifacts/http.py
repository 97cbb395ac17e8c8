"""HTTP for downloads over the standard library: proxies honoured, credentials kept to the host they are for."""

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

from fleet_agent.addresses import is_loopback

# No byte for that long is a cut connection, whatever the kernel believes of it.
SILENCE_SECONDS = 60.0
USER_AGENT = "fleet-agent"

# What a cut, refused or silent connection raises. HTTPError (an answer) is a URLError, too: catch it before these.
CONNECTION_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.timeout, TimeoutError)


def may_carry_token(url: str) -> bool:
    """A token goes over https, or to this machine itself; never in the clear over a network."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


@dataclass(frozen=True)
class Source:
    """Where a file comes from. `authorization` goes to the URL's own host only, never along a redirect to another."""

    url: str
    authorization: str = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, and hands credentials on to the same host only."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is None:
            return None
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(newurl, code, "redirect from https to http refused", headers, fp)
        _authorize(request, self._source)
        return request


def _authorize(request: urllib.request.Request, source: Source) -> None:
    home, target = urlsplit(source.url), urlsplit(request.full_url)
    same_host = (home.scheme, home.hostname, home.port) == (target.scheme, target.hostname, target.port)
    if source.authorization and same_host and may_carry_token(request.full_url):
        request.add_unredirected_header("Authorization", source.authorization)


def open_url(source: Source, headers: Mapping[str, str] | None = None) -> Any:
    """GET; the response to read from and close. Raises HTTPError for an answer >= 400, else CONNECTION_ERRORS."""
    if urlsplit(source.url).scheme not in ("http", "https"):
        raise urllib.error.URLError(f"not an http(s) URL: {source.url}")
    request = urllib.request.Request(source.url, headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"})
    for name, value in (headers or {}).items():
        request.add_header(name, value)
    _authorize(request, source)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(_proxies(source.url)), _Redirects(source))
    return opener.open(request, timeout=SILENCE_SECONDS)


def _proxies(url: str) -> dict[str, str]:
    """The host's proxies; none for this machine itself."""
    if is_loopback(urlsplit(url).hostname or ""):
        return {}
    return urllib.request.getproxies()
