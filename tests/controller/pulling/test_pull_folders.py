"""A folder as something that can be pulled: its hashes, its commit, and handing it out."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fleet_agent.steps.hash_folder import both_hashes, model_files, noted
from fleet_controller.domain.steps import ArtifactFile
from fleet_controller.operations.problems import OperationError
from fleet_controller.operations.pull_import import files_of_folder
from fleet_controller.pulling.folder import hashed_folder
from fleet_controller.pulling.folder_server import FolderServer

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "model.safetensors").write_bytes(CONTENT)
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    return tmp_path


def note(folder: Path, path: str, commit: str, found: str) -> None:
    place = folder / ".cache" / "huggingface" / "download" / f"{path}.metadata"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{commit}\n{found}\n1700000000.0\n")


def test_weights_are_named_by_sha256_and_the_rest_as_git_does(folder: Path) -> None:
    files, notes = files_of_folder("own/model", hashed_folder(folder))
    by_path = {file.path: file for file in files.files}
    assert by_path["sub/model.safetensors"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert by_path["config.json"].git_blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert set(by_path) == {"config.json", "sub/model.safetensors"}
    assert len(files.commit) == 40
    assert notes


def test_the_same_content_is_the_same_commit_and_another_content_another(folder: Path) -> None:
    first, _ = files_of_folder("own/model", hashed_folder(folder))
    assert files_of_folder("own/model", hashed_folder(folder))[0] == first
    (folder / "config.json").write_bytes(b"{ }")
    assert files_of_folder("own/model", hashed_folder(folder))[0].commit != first.commit


def test_hashes_that_the_hub_gave_are_held_to(folder: Path) -> None:
    commit = "a" * 40
    note(folder, "config.json", commit, hashlib.sha1(b"blob 2\0{}").hexdigest())
    note(folder, "sub/model.safetensors", commit, hashlib.sha256(CONTENT).hexdigest())
    files, notes = files_of_folder("own/model", hashed_folder(folder))
    assert (files.commit, notes) == (commit, ())
    note(folder, "config.json", commit, "b" * 40)
    with pytest.raises(OperationError, match=r"config\.json"):
        files_of_folder("own/model", hashed_folder(folder))


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        hashed_folder(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        hashed_folder(tmp_path / "gone")


def test_agent_and_controller_read_a_folder_alike(folder: Path) -> None:
    note(folder, "config.json", "a" * 40, "b" * 40)
    paths = sorted(model_files(folder))
    seen = [
        {"path": path.as_posix(), "noted": noted(folder, path)[1], **both_hashes(folder / path, lambda _: None)}
        for path in paths
    ]
    assert hashed_folder(folder) == {"commit": "a" * 40, "files": seen}


@pytest.fixture
def server(folder: Path) -> FolderServer:
    files = (ArtifactFile(path="sub/model.safetensors", size_bytes=len(CONTENT)),)
    made = FolderServer(str(folder), "own/model", "c" * 40, files)
    made.start()
    return made


def get(server: FolderServer, path: str, wanted: str = "") -> tuple[int, bytes]:
    url = f"{server.url}/own/model/resolve/{'c' * 40}/{path}"
    request = urllib.request.Request(url, headers={"Range": wanted} if wanted else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.read()


def test_a_folder_is_handed_out_by_ranges(server: FolderServer) -> None:
    assert get(server, "sub/model.safetensors") == (200, CONTENT)
    assert get(server, "sub/model.safetensors", "bytes=1000-") == (206, CONTENT[1000:])
    assert get(server, "sub/model.safetensors", "bytes=5-9") == (206, CONTENT[5:10])
    server.stop()


@pytest.mark.parametrize("path", ["config.json", "../config.json", "sub/%2e%2e/config.json", ""])
def test_nothing_else_of_the_folder_is_handed_out(server: FolderServer, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, path)
    assert caught.value.code == 404
    server.stop()
