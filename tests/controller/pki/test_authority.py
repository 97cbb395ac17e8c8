"""Certificates hold what they say, for as long as they say."""

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from fleet_controller.pki.authority import Authority, Usage, certificate_of, new_key, public_key_of
from fleet_controller.pki.names import host_name

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("fleet of somebody", NOW)


@pytest.mark.parametrize(
    ("usage", "purposes"),
    [(Usage.CONTROLLER, {"sslclient"}), (Usage.HOST, {"sslserver"}), (Usage.PULL, {"sslclient", "sslserver"})],
)
def test_openssl_agrees_with_what_it_is_good_for(
    authority: Authority, usage: Usage, purposes: set[str], tmp_path: Path
) -> None:
    made = authority.issue(new_key()[0], "somebody.fleet.internal", usage, 30, NOW)
    (tmp_path / "authority.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "made.pem").write_bytes(made.pem)
    for purpose in ("sslclient", "sslserver"):
        argv = ["openssl", "verify", "-CAfile", "authority.pem", "-purpose", purpose, "-attime",
                str(int(NOW.timestamp())), "made.pem"]  # fmt: skip
        found = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False)
        assert (found.returncode == 0) == (purpose in purposes), found.stderr


def test_a_certificate_has_one_name_and_is_renewed_after_half_its_life(authority: Authority) -> None:
    name = host_name("h0123456789abcdef", "0123456789abcdef0123456789abcdef")
    made = authority.issue(new_key()[0], name, Usage.HOST, 90, NOW)
    names = x509.load_pem_x509_certificate(made.pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [name]
    assert certificate_of(made.pem) == made
    day = 86400
    assert not made.half_spent(NOW.timestamp() + 44 * day)
    assert made.half_spent(NOW.timestamp() + 46 * day)


@pytest.mark.parametrize("machine_id", ["", "a b", "x\0y", "*", "a..b", "ä", "x\n"])
def test_a_host_that_tells_a_strange_machine_id_gets_no_certificate(authority: Authority, machine_id: str) -> None:
    with pytest.raises(ValueError, match="no name for a certificate"):
        authority.issue(new_key()[0], host_name("h1", machine_id), Usage.HOST, 90, NOW)


def test_only_keys_as_hosts_make_them_are_signed(tmp_path: Path) -> None:
    for kind, fine in (("ecdsa", True), ("ed25519", False)):
        path = tmp_path / kind
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
        line = path.with_suffix(".pub").read_text()
        if fine:
            assert public_key_of(line)
        else:
            with pytest.raises(ValueError, match="no ecdsa"):
                public_key_of(line)
