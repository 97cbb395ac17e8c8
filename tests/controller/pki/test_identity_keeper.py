"""What the controller keeps of its authority: private, made once, renewed in time."""

import datetime
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fleet_controller.pki.authority import Authority
from fleet_controller.pki.keeper import CONTROLLER_DAYS, Enrolment, IdentityKeeper, UnusableAuthorityError
from fleet_controller.pki.names import pull_name

DAY = 86400.0
ENROLMENT = Enrolment(
    host="gpu1", way="gpu1 7443", address="10.0.0.1", port=7443, machine_id="ab" * 16, label="h1"
)  # fmt: skip


def test_the_authority_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = IdentityKeeper(tmp_path).ensure()
    assert IdentityKeeper(tmp_path).ensure() == first
    assert b"PRIVATE" not in first
    folder = tmp_path / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "authority.pem").stat().st_mode) == 0o600


def test_two_commands_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    code = "import sys, pathlib; from fleet_controller.pki.keeper import IdentityKeeper\n"
    code += "sys.stdout.buffer.write(IdentityKeeper(pathlib.Path(sys.argv[1])).ensure())"
    argv = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in started}) == 1


def test_the_controllers_own_certificate_is_made_new_in_time(tmp_path: Path) -> None:
    moment = [1_800_000_000.0]
    keeper = IdentityKeeper(tmp_path, now=lambda: moment[0])
    first = keeper.credentials()
    moment[0] += DAY
    assert keeper.credentials() == first
    moment[0] += CONTROLLER_DAYS / 2 * DAY
    second = keeper.credentials()
    assert second.key_pem != first.key_pem
    assert second.authority_pem == first.authority_pem


def test_another_authority_signs_the_controller_anew(tmp_path: Path) -> None:
    """Its file was lost, or an older one was restored: what the former one signed opens nothing any more."""
    keeper = IdentityKeeper(tmp_path)
    keeper.credentials()
    (tmp_path / "identity" / "authority.pem").unlink()
    found = keeper.credentials()
    made = x509.load_pem_x509_certificate(found.certificate_pem)
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(found.authority_pem))
    assert keeper.credentials() == found


def test_a_broken_authority_says_what_to_do_and_is_not_replaced(tmp_path: Path) -> None:
    keeper = IdentityKeeper(tmp_path)
    keeper.ensure()
    path = tmp_path / "identity" / "authority.pem"
    path.write_bytes(b"nothing")
    with pytest.raises(UnusableAuthorityError, match="restore it"):
        keeper.credentials()
    assert path.read_bytes() == b"nothing"


def test_revoking_makes_the_name_another_one(tmp_path: Path) -> None:
    keeper = IdentityKeeper(tmp_path)
    assert not keeper.revoke("gpu1")
    keeper.keep(ENROLMENT)
    assert keeper.revoke("gpu1")
    assert not keeper.revoke("gpu1")
    revoked = keeper.enrolment("gpu1")
    assert revoked is not None
    assert revoked.revoked
    assert revoked.name != ENROLMENT.name
    keeper.forget("gpu1")  # coming back to ssh makes no revoked certificate count again
    assert keeper.enrolment("gpu1") == revoked


def test_a_broken_enrolment_is_none(tmp_path: Path) -> None:
    keeper = IdentityKeeper(tmp_path)
    keeper.keep(ENROLMENT)
    assert keeper.enrolment("gpu1") == ENROLMENT
    (tmp_path / "identity" / "hosts" / "gpu1.json").write_text("{")
    assert keeper.enrolment("gpu1") is None


def test_an_authority_cut_in_two_still_signs(tmp_path: Path) -> None:
    keeper = IdentityKeeper(tmp_path)
    keeper.ensure()
    both = (tmp_path / "identity" / "authority.pem").read_bytes()
    key, begin, rest = both.partition(b"-----BEGIN CERTIFICATE-----")
    assert Authority(key, begin + rest).certificate_pem == keeper.ensure()


def test_a_node_of_a_pull_gets_a_certificate_for_a_day_that_nobody_keeps(tmp_path: Path) -> None:
    keeper = IdentityKeeper(tmp_path)
    keeper.ensure()
    before = sorted(path.name for path in (tmp_path / "identity").iterdir())
    name = pull_name("abc", "gpu1")
    made = keeper.sign_pull(name)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert 0.99 < (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400 <= 1
    assert keeper.sign_pull(name).key_pem != made.key_pem
    assert sorted(path.name for path in (tmp_path / "identity").iterdir()) == before
