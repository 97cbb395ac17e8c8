"""The host's key and certificate on disk: whole, private, and nobody else's."""

import stat
import subprocess
from pathlib import Path

import pytest

from fleet_agent.identity.store import IdentityStore
from fleet_agent.problem import ProblemError

PARTS: dict[str, str | int] = {
    "certificate_pem": "certificate",
    "authority_pem": "authority",
    "controller_name": "controller.fleet.internal",
    "bind_address": "127.0.0.1",
    "port": 7443,
}


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore(tmp_path / "identity")


def test_a_key_is_made_here_and_kept_private(store: IdentityStore) -> None:
    key = store.new_key()
    assert key.public_key.startswith("ecdsa-sha2-nistp256 ")
    (private,) = store.folder.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert private.read_text().startswith("-----BEGIN PRIVATE KEY-----")
    derived = subprocess.run(["ssh-keygen", "-y", "-f", str(private)], capture_output=True, text=True, check=True)
    assert derived.stdout.split()[:2] == key.public_key.split()[:2]


def test_an_identity_is_all_of_it_or_none(store: IdentityStore) -> None:
    assert store.load() is None
    installed = store.install(store.new_key().key_id, replace=False, **PARTS)
    assert store.load() == installed
    assert [path.name for path in store.folder.iterdir()] == ["identity.json"]
    assert stat.S_IMODE((store.folder / "identity.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("key_id", ["", "../identity.json", "0123456789abcdef"])
def test_a_key_that_was_not_made_here_is_refused(store: IdentityStore, key_id: str) -> None:
    before = store.install(store.new_key().key_id, replace=False, **PARTS)
    with pytest.raises(ProblemError, match="not made here"):
        store.install(key_id, replace=False, **PARTS)
    assert store.load() == before


def test_another_authority_needs_a_word(store: IdentityStore) -> None:
    """A colleague's controller takes no host over by mistake."""
    before = store.install(store.new_key().key_id, replace=False, **PARTS)
    other = PARTS | {"authority_pem": "another"}
    with pytest.raises(ProblemError, match="another fleet's authority"):
        store.install(store.new_key().key_id, replace=False, **other)
    assert store.load() == before
    assert store.install(store.new_key().key_id, replace=True, **other).authority_pem == "another"


def test_keys_that_nobody_signed_do_not_pile_up(store: IdentityStore) -> None:
    keys = [store.new_key() for _ in range(7)]
    assert len(list(store.folder.iterdir())) == 4
    store.install(keys[-1].key_id, replace=False, **PARTS)


def test_a_broken_file_says_what_to_do(store: IdentityStore) -> None:
    store.install(store.new_key().key_id, replace=False, **PARTS)
    (store.folder / "identity.json").write_text("{")
    with pytest.raises(ProblemError) as raised:
        store.load()
    assert "fleet up" in raised.value.remedy
    assert store.remove()
    assert not store.remove()
