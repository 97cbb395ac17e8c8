"""TLS apart from its socket: whatever parts the records come in, all that is here is read, and nothing awaited."""

import contextlib
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from fleet_agent.relay.control import TlsFiles
from fleet_agent.relay.links import client_context, server_context
from fleet_agent.relay.tls import TlsSession

Pair = tuple[TlsSession, TlsSession]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    folder = tmp_path_factory.mktemp("certificates")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=a", "-addext", "subjectAltName=DNS:a.test"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    Path(key).chmod(0o600)
    return TlsFiles(certificate, certificate, key)


@pytest.fixture
def pair(files: TlsFiles) -> Pair:
    """Client and server after the handshake."""
    left, right = socket.socketpair()
    client, server = TlsSession(client_context(files)), TlsSession(server_context(files), server_side=True)
    with left, right:
        thread = threading.Thread(target=server.handshake, args=(right, 10.0))
        thread.start()
        client.handshake(left, 10.0)
        thread.join()
        client.feed(memoryview(left.recv(1 << 16)))  # tickets: records without content
    assert client.read_into(memoryview(bytearray(10))) == 0
    return client, server


@pytest.mark.parametrize("part", [1, 3, 5, 1000, 16_406, 16_407, 70_000, 1 << 20])
def test_every_record_is_read_as_soon_as_it_is_here(pair: Pair, part: int) -> None:
    client, server = pair
    content = bytes(range(251)) * 600
    sealed = memoryview(server.seal(content[:12]) + server.seal(content[12:]))
    if part < 100:
        sealed, content = sealed[: 34 + 16_406], content[: 12 + 16_384]
    read, view = bytearray(), memoryview(bytearray(50_000))
    for at in range(0, len(sealed), part):
        client.feed(sealed[at : at + part])
        while count := client.read_into(view):
            read += view[:count]
        assert not client.readable
        whole = 0 if at + part < 34 else 12 + max(0, (at + part - 34) // 16_406) * 16_384
        assert len(read) >= min(whole, len(content))
    assert read == content


def test_a_session_that_ends_is_no_silence(pair: Pair) -> None:
    client, server = pair
    with contextlib.suppress(ssl.SSLError):
        server.session.unwrap()
    client.feed(memoryview(server.unsent()))
    with pytest.raises(EOFError):
        client.read_into(memoryview(bytearray(10)))
