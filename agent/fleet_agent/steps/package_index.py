"""Find an sdist on the package index that this host uses, without running any of it.

uv knows the host's index (environment, uv.toml) and prints it; the index is then asked as PEP 503 and PEP 691 say.
`pip download` would do, too, but runs the sdist's build back end for its metadata.
"""

import base64
import html.parser
import json
import re
import urllib.error
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_agent.artifacts.http import CONNECTION_ERRORS, Source, open_url
from fleet_agent.jobs.errors import JobProblem
from fleet_agent.steps.context import StepContext

SDIST = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._+!-]*)")
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
PAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Sdist:
    source: Source
    name: str
    sha256: str


@dataclass(frozen=True)
class Listing:
    """Where uv looks on this host: indexes first, then folders of files."""

    indexes: tuple[str, ...]
    folders: tuple[str, ...]


def parse_listing(text: str) -> Listing:
    """What `uv pip compile --emit-index-url --emit-find-links` prints for no requirement at all."""
    indexes = re.findall(r"^--(?:extra-)?index-url\s+(\S+)", text, re.MULTILINE)
    folders = re.findall(r"^--find-links\s+(\S+)", text, re.MULTILINE)
    return Listing(tuple(dict.fromkeys(indexes)), tuple(dict.fromkeys(folders)))


def sdist_names(name: str, version: str) -> tuple[str, ...]:
    """File names an sdist of that name and version may have (PEP 625, and the older spelling)."""
    stems = {re.sub(r"[-_.]+", "_", name).lower(), name, re.sub(r"[-_.]+", "-", name).lower()}
    return tuple(f"{stem}-{version}{suffix}" for stem in sorted(stems) for suffix in (".tar.gz", ".zip"))


async def find_sdist(requirement: str, context: StepContext) -> Sdist | Path:
    """The sdist of "name==version": on an index, or a file in a folder of links. Raises JobProblem."""
    from fleet_agent.steps.python_environment import find_uv

    matched = SDIST.fullmatch(requirement)
    assert matched is not None
    project, wanted = re.sub(r"[-_.]+", "-", matched[1]).lower(), sdist_names(matched[1], matched[2])
    argv = [find_uv(context), "pip", "compile", "--quiet", "--emit-index-url", "--emit-find-links", "/dev/null"]
    printed = await context.run_child(argv, capture=True)
    listing = parse_listing(printed.stdout)
    for folder in listing.folders:
        path = Path(folder.removeprefix("file://"))
        for name in wanted:
            if (path / name).is_file():
                return path / name
    return await context.in_thread(_ask_indexes, listing.indexes, project, wanted, requirement)


def _ask_indexes(indexes: Sequence[str], project: str, wanted: tuple[str, ...], requirement: str) -> Sdist:
    reasons = []
    for index in indexes:
        source = source_of(f"{index.rstrip('/')}/{project}/")
        try:
            with open_url(source, {"Accept": ACCEPT}) as response:
                page, kind, address = response.read(PAGE_BYTES), response.headers.get_content_type(), response.url
        except urllib.error.HTTPError as error:
            reasons.append(f"HTTP {error.code}")
            continue
        except CONNECTION_ERRORS as error:
            reasons.append(str(error))
            continue
        for name, url, sha256 in parse_page(page, kind, address):
            if name in wanted and sha256:
                return Sdist(Source(url, _same_host(source, url)), name, sha256)
        reasons.append("no such sdist with a sha256")
    raise JobProblem(
        "not-found",
        f"the host's package index has no sdist {requirement}: {'; '.join(reasons) or 'no index is set'}",
        "check the version, or set UV_DEFAULT_INDEX for this host in hosts.yaml",
    )


def source_of(url: str) -> Source:
    """An address whose user and password (if any) moved into the Authorization header."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return Source(url)
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return Source(bare.geturl(), "Basic " + base64.b64encode(pair.encode()).decode())


def _same_host(source: Source, url: str) -> str:
    same = urllib.parse.urlsplit(source.url).netloc == urllib.parse.urlsplit(url).netloc
    return source.authorization if same else ""


def parse_page(page: bytes, content_type: str, address: str) -> list[tuple[str, str, str]]:
    """(file name, absolute URL, sha256 or "") of a project's page, JSON (PEP 691) or HTML (PEP 503)."""
    if content_type.endswith("json"):
        files: list[dict[str, Any]] = json.loads(page).get("files", [])
        return [
            (file["filename"], urllib.parse.urljoin(address, file["url"]), file.get("hashes", {}).get("sha256", ""))
            for file in files
        ]
    parser = _Links()
    parser.feed(page.decode(errors="replace"))
    found = []
    for link in parser.links:
        url, _, fragment = urllib.parse.urljoin(address, link).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        found.append((name, url, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""))
    return found


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def remote_size(source: Source) -> int:
    """Size of the file as its server says. Raises JobProblem where it does not say."""
    try:
        with open_url(source) as response:
            length = response.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise JobProblem("not-found", f"{source.url} answers HTTP {error.code}", "check the URL") from None
    except CONNECTION_ERRORS as error:
        raise JobProblem("connection-failed", f"cannot reach {source.url}: {error}", "check the network") from None
    if not length.isdigit():
        raise JobProblem("wrong-length", f"{source.url} does not say how long it is", "use another address")
    return int(length)
