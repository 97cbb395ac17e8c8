"""A relay as it runs on a host, with certificates of the fleet's own authority: who is turned away, at what cost."""

import datetime
import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from benchmarks.relay_lab import RelayLab, make_content, make_manifest, relay_lab
from benchmarks.relay_process import RelayProcess
from fleet_agent.relay.control import FolderSource, PeerRefused, Route, TlsFiles
from fleet_agent.relay.frames import Frame, Hello, Kind, unpack
from fleet_agent.relay.links import client_context
from fleet_agent.relay.serving import STRANGERS_AT_ONCE
from fleet_controller.pki.authority import Usage, new_key, private_pem
from fleet_controller.pki.keeper import Credentials, IdentityKeeper
from fleet_controller.pki.names import pull_name

HEAD, PEER = pull_name("p1", "gpu1"), pull_name("p1", "gpu2")
# Python's own threads and TLS contexts grow a little; one stranger whose megabytes are kept would show.
MOST_GROWTH_KIB = 16 << 10


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> IdentityKeeper:
    return IdentityKeeper(tmp_path_factory.mktemp("controller"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, keeper: IdentityKeeper) -> Iterator[RelayLab[RelayProcess]]:
    """HEAD is a process that has everything; PEER is not started."""
    folder = tmp_path_factory.mktemp("relays")
    manifest = make_manifest(make_content(folder / "source", {"model.gguf": 3_000_000}), 2, 1 << 16)
    with relay_lab(folder / "lab", manifest, [HEAD, PEER], kind=RelayProcess) as made:
        made.tls = {name: files(folder, keeper.sign_pull(name)) for name in (HEAD, PEER)}
        relay = made.start(HEAD)
        relay.order(Route(1, folder=FolderSource(str(folder / "source"))))
        relay.wait_until_complete()
        yield made


def files(folder: Path, credentials: Credentials) -> TlsFiles:
    number = len(list(folder.glob("*.key")))
    contents = (credentials.authority_pem, credentials.certificate_pem, credentials.key_pem)
    paths = [folder / f"{number}.{kind}" for kind in ("ca", "pem", "key")]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return TlsFiles(*(str(path) for path in paths))


def connected(lab: RelayLab[RelayProcess], source: str = "127.0.0.1") -> socket.socket:
    peer = lab.peer(HEAD)
    return socket.create_connection((peer.address, peer.port), timeout=10, source_address=(source, 0))


def greeted(lab: RelayLab[RelayProcess], mine: TlsFiles, name: str) -> ssl.SSLSocket:
    connection = client_context(mine).wrap_socket(connected(lab))
    connection.sendall(Hello(name, lab.rollout, lab.manifest.digest(), "pieces").pack())
    return connection


def answer(lab: RelayLab[RelayProcess], mine: TlsFiles, name: str) -> str:
    """How the relay greets who shows this certificate and says that he is `name`: WELCOME, BYE, or refused by TLS."""
    try:
        with greeted(lab, mine, name) as connection:
            return unpack(connection.recv(12)).kind.name
    except OSError:
        return "refused"


def issued(keeper: IdentityKeeper, name: str, usage: Usage, begins_days: float = 0.0, days: float = 1.0) -> Credentials:
    public, key = new_key()
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=begins_days)
    made = keeper._authority().issue(public, name, usage, days, now)
    return Credentials(authority_pem=keeper.ensure(), key_pem=key, certificate_pem=made.pem)


def with_names(keeper: IdentityKeeper, *names: str) -> Credentials:
    """A certificate of our authority as it never makes one: with none or several names."""
    authority = keeper._authority()
    signer = serialization.load_pem_private_key(authority.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, PEER[:64])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.load_pem_x509_certificate(authority.certificate_pem).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return Credentials(authority_pem=authority.certificate_pem, key_pem=private_pem(key), certificate_pem=pem)


def test_only_the_pulls_own_certificates_are_let_in(
    lab: RelayLab[RelayProcess], keeper: IdentityKeeper, tmp_path: Path
) -> None:
    other_pull = pull_name("p2", "gpu2")
    stranger = pull_name("p1", "gpu9")
    foreign = IdentityKeeper(tmp_path / "foreign").sign_pull(PEER)
    ours = lab.tls[PEER]
    assert ours is not None
    told = {
        "ours": answer(lab, ours, PEER),
        "the controller's": answer(lab, files(tmp_path, keeper.credentials()), PEER),
        "a host's": answer(lab, files(tmp_path, issued(keeper, PEER, Usage.HOST)), PEER),
        "another pull's": answer(lab, files(tmp_path, keeper.sign_pull(other_pull)), other_pull),
        "another pull's for ours": answer(lab, files(tmp_path, keeper.sign_pull(other_pull)), PEER),
        "no node of this one": answer(lab, files(tmp_path, keeper.sign_pull(stranger)), stranger),
        "the head's own": answer(lab, files(tmp_path, keeper.sign_pull(HEAD)), HEAD),
        "expired": answer(lab, files(tmp_path, issued(keeper, PEER, Usage.PULL, -3.0)), PEER),
        "not yet": answer(lab, files(tmp_path, issued(keeper, PEER, Usage.PULL, 1.0)), PEER),
        "two names": answer(lab, files(tmp_path, with_names(keeper, PEER, "a.b")), PEER),
        "no name": answer(lab, files(tmp_path, with_names(keeper)), PEER),
        "wildcard": answer(lab, files(tmp_path, with_names(keeper, "*.p1.pulls.fleet.internal")), PEER),
        "cut off": answer(lab, files(tmp_path, with_names(keeper, f"{PEER}\0.evil")), PEER),
        "foreign": answer(
            lab, files(tmp_path, foreign.model_copy(update={"authority_pem": keeper.ensure()})), PEER
        ),
    }  # fmt: skip
    assert told.pop("ours") == "WELCOME"
    assert not [who for who, how in told.items() if how == "WELCOME"], told
    assert {told[who] for who in ("a host's", "expired", "not yet", "foreign")} == {"refused"}  # by TLS itself


def status_of(pid: int) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in ("VmHWM:", "Threads:")}


def test_strangers_cost_bounded_memory_threads_and_descriptors(lab: RelayLab[RelayProcess]) -> None:
    """More than it takes at once, from many addresses, who say a little and stay; and who send megabytes."""
    pid = lab.relays[HEAD].process.pid
    ours = lab.tls[PEER]
    assert ours is not None
    assert answer(lab, ours, PEER) == "WELCOME"  # what the first handshake loads is no stranger's
    before, descriptors = status_of(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))
    garbage = random.Random(17).randbytes(1 << 20)
    with ExitStack() as held:
        for number in range(150):
            with suppress(OSError):
                stranger = held.enter_context(connected(lab, f"127.0.0.{1 + number % 30}"))
                stranger.settimeout(2.0)
                # A TLS record that promises 16 KiB and brings a few, or none that is one.
                stranger.sendall(b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xf0" + garbage[:500] if number % 3 else garbage)
        during = status_of(pid)
        assert during["Threads"] - before["Threads"] <= STRANGERS_AT_ONCE
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) - descriptors <= STRANGERS_AT_ONCE + 5
    assert status_of(pid)["VmHWM"] - before["VmHWM"] < MOST_GROWTH_KIB
    assert len(lab.relays[HEAD].told(PeerRefused)) < 100
    assert answer(lab, ours, PEER) == "WELCOME"


def test_a_node_that_asks_and_never_reads_costs_one_thread(lab: RelayLab[RelayProcess]) -> None:
    """Its certificate is right: it comes again and again, asks for all it may, and takes nothing."""
    pid = lab.relays[HEAD].process.pid
    ours = lab.tls[PEER]
    assert ours is not None
    assert answer(lab, ours, PEER) == "WELCOME"
    before = status_of(pid)
    with ExitStack() as held:
        for _ in range(40):
            connection = held.enter_context(greeted(lab, ours, PEER))
            with suppress(OSError):
                connection.sendall(b"".join(Frame(Kind.REQUEST, 0, piece).pack() for piece in range(45)))
        assert answer(lab, ours, PEER) == "WELCOME"
        after = status_of(pid)
        assert after["Threads"] - before["Threads"] <= 4
    assert after["VmHWM"] - before["VmHWM"] < MOST_GROWTH_KIB
