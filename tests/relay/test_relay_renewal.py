"""A pull that lasts longer than a certificate: another one is taken up by the next link, and no link ends for it."""

import datetime
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.relay_lab import RelayLab, RelayThread
from fleet_agent.relay.control import Complete, Limits, PeerLost, Progress, TlsFiles
from fleet_agent.relay.credentials import NodeCredentials
from fleet_agent.relay.links import LinkLost, client_context, dial
from fleet_controller.pki.authority import Authority, Usage, new_key
from support.relay_chains import assert_all_right, folder_source, send_chain, threads, wait_all

NAMES = ("h0", "h1")
SLOW_BYTES_PER_SECOND = 100_000  # until the test lets go


class Renewals:
    """Certificates of one authority, put where the relays read theirs; `days` below zero makes expired ones."""

    def __init__(self) -> None:
        self._authority = Authority.create("renewals", datetime.datetime.now(datetime.UTC))

    def put(self, files: TlsFiles, name: str, days: float = 1.0) -> None:
        """As the agent does: each file whole at once, the key last."""
        public, private = new_key()
        made = self._authority.issue(public, name, Usage.PULL, days, datetime.datetime.now(datetime.UTC))
        contents = ((files.ca, self._authority.certificate_pem), (files.certificate, made.pem), (files.key, private))
        for path, content in contents:
            temporary = Path(f"{path}.new")
            temporary.touch(0o600)
            temporary.write_bytes(content)
            temporary.replace(path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RelayLab[RelayThread]]:
    """h0 and h1, started, with certificates of `renewals` in folders of their own."""
    with threads(tmp_path, 2, {"model.gguf": 4_000_000}) as made:
        for name in NAMES:
            files = own_files(tmp_path, name)
            made.tls[name] = files
            Renewals().put(files, name)
        yield made


def own_files(tmp_path: Path, name: str) -> TlsFiles:
    folder = tmp_path / "own" / name
    folder.mkdir(parents=True, exist_ok=True)
    return TlsFiles(*(str(folder / part) for part in ("ca.pem", "certificate.pem", "key.pem")))


def renew(lab: RelayLab[RelayThread], renewals: Renewals, days: float = 1.0) -> None:
    for name in NAMES:
        files = lab.tls[name]
        assert files is not None
        renewals.put(files, name, days)


def lost(lab: RelayLab[RelayThread]) -> list[str]:
    return [event.reason for relay in lab.relays.values() for event in relay.told(PeerLost)]


def test_links_that_are_up_go_on_and_the_next_ones_use_the_new_certificate(
    lab: RelayLab[RelayThread], tmp_path: Path
) -> None:
    renewals = Renewals()
    renew(lab, renewals)
    for name in NAMES:
        lab.start(name, download_bytes_per_second=SLOW_BYTES_PER_SECOND if name == "h1" else 0)
    send_chain(lab, NAMES, folder_source(tmp_path))
    lab.relays["h1"].wait_for(lambda event: isinstance(event, Progress) and event.received_bytes > 0)
    # Another authority altogether: nobody could begin a link with what was read before.
    renew(lab, Renewals())
    dial(lab.peer("h0"), client_context(lab.tls["h1"])).close()  # type: ignore[arg-type]
    assert not lab.relays["h1"].told(Complete)  # its link was up all along
    lab.relays["h1"].order(Limits())
    wait_all(lab)
    assert_all_right(lab)
    assert lost(lab) == []


def test_who_dials_uses_the_new_certificate_too(lab: RelayLab[RelayThread], tmp_path: Path) -> None:
    renewals = Renewals()
    renew(lab, renewals, days=-0.001)  # expired by now, though backdated
    for name in NAMES:
        lab.start(name)
    with pytest.raises(LinkLost):
        dial(lab.peer("h0"), client_context(lab.tls["h1"]))  # type: ignore[arg-type]
    renew(lab, renewals)
    send_chain(lab, NAMES, folder_source(tmp_path))
    wait_all(lab)
    assert_all_right(lab)


def test_what_is_half_replaced_or_gone_is_not_used(tmp_path: Path) -> None:
    files, renewals = own_files(tmp_path, "h0"), Renewals()
    renewals.put(files, "h0")
    kept = NodeCredentials(files)
    first = kept.dialling()
    other = own_files(tmp_path, "h1")
    renewals.put(other, "h0")
    Path(other.key).replace(files.key)  # its certificate has not come yet
    assert kept.dialling() is first
    Path(other.certificate).replace(files.certificate)
    second = kept.dialling()
    assert second is not first
    assert kept.dialling() is second
    Path(files.key).unlink()
    assert kept.dialling() is second
    with pytest.raises(FileNotFoundError):
        NodeCredentials(replace(files, ca=str(tmp_path / "none")))


def test_both_directions_are_apart(tmp_path: Path) -> None:
    files = own_files(tmp_path, "h0")
    Renewals().put(files, "h0")
    kept = NodeCredentials(files)
    assert (kept.dialling().protocol, kept.listening().protocol) == (
        ssl.PROTOCOL_TLS_CLIENT,
        ssl.PROTOCOL_TLS_SERVER,
    )
