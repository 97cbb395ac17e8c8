"""Paths, the machine id, and folders that are ours alone."""

import os
import stat
from pathlib import Path

import pytest

from fleet_agent import layout as layout_module
from fleet_agent.layout import Layout, LayoutError, ensure_private_folder, parse_platform_uuid, read_machine_id


def layout_of(tmp_path: Path, **extra: str) -> Layout:
    return Layout.from_environment(
        {"HOME": str(tmp_path), "FLEET_RUNTIME_DIR": str(tmp_path / "run"), "FLEET_MACHINE_ID": "m", **extra}
    )


def test_everything_of_a_machine_is_in_its_own_folder_and_the_socket_is_not(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    assert layout.machine_dir == tmp_path / ".local/share/fleet/machines" / layout.machine_id
    for path in (
        layout.agent_dir, layout.jobs_dir, layout.services_dir, layout.logs_dir, layout.engines_dir,
        layout.configuration_path,
    ):  # fmt: skip
        assert path.parent == layout.machine_dir
    assert layout.sources_dir == layout.engines_dir / "sources"
    assert layout.socket_path == tmp_path / "run" / f"{layout.machine_id[:12]}.sock"


def test_two_machines_that_share_a_home_share_no_state_and_no_socket(tmp_path: Path) -> None:
    one, two = layout_of(tmp_path, FLEET_MACHINE_ID="host-1"), layout_of(tmp_path, FLEET_MACHINE_ID="host-2")
    assert one.root == two.root
    assert one.machine_dir != two.machine_dir
    assert one.socket_path != two.socket_path


def test_the_machine_id_is_stable_and_does_not_reveal_the_real_one() -> None:
    real = "0123456789abcdef0123456789abcdef"
    first = read_machine_id({"FLEET_MACHINE_ID": real})
    assert first == read_machine_id({"FLEET_MACHINE_ID": real})
    assert len(first) == 32 and int(first, 16) >= 0 and first != real


def test_the_platform_uuid_is_found_in_what_ioreg_prints() -> None:
    # Written from the documented form of `ioreg -rd1 -c IOPlatformExpertDevice`; not captured on a Mac of ours.
    text = """+-o J614cAP  <class IOPlatformExpertDevice, id 0x100000240, registered, matched, active>
    {
      "IOPlatformSerialNumber" = "XXXXXXXXXX"
      "IOPlatformUUID" = "A1B2C3D4-0000-1111-2222-333344445555"
    }
"""
    assert parse_platform_uuid(text) == "A1B2C3D4-0000-1111-2222-333344445555"
    assert parse_platform_uuid("no such key") is None


def test_a_machine_without_an_id_keeps_a_random_one(tmp_path: Path) -> None:
    first = layout_module._kept_random_id(tmp_path)
    assert layout_module._kept_random_id(tmp_path) == first
    kept = tmp_path / f"fleet-machine-id-{os.getuid()}"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("damaged")
    assert layout_module._kept_random_id(tmp_path) not in ("damaged", first)


def test_a_planted_link_is_not_followed_for_the_kept_id(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"fleet-machine-id-{os.getuid()}").symlink_to(victim)
    with pytest.raises(LayoutError, match="no id"):
        layout_module._kept_random_id(tmp_path)
    assert victim.read_text() == "precious"


def test_a_socket_path_of_104_bytes_with_its_nul_is_the_longest() -> None:
    def layout_with(folder: str) -> Layout:
        return Layout.from_environment({"HOME": "/nowhere", "FLEET_RUNTIME_DIR": folder, "FLEET_MACHINE_ID": "m"})

    name_bytes = len("/012345678901.sock") + 1
    fits = "/" + "x" * (104 - name_bytes - 1)
    assert len(os.fsencode(layout_with(fits).socket_path)) + 1 == 104
    with pytest.raises(LayoutError, match="105 bytes") as caught:
        layout_with(fits + "x")
    assert caught.value.code == "socket-path-too-long"
    assert "FLEET_RUNTIME_DIR" in caught.value.remedy


def test_ensure_creates_private_folders_and_does_so_again_without_harm(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    layout.ensure()
    layout.ensure()
    for folder in (layout.machine_dir, layout.jobs_dir, layout.logs_dir, layout.runtime_dir):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0


def test_a_root_that_cannot_be_created_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    layout = layout_of(tmp_path, FLEET_AGENT_ROOT=str(tmp_path / "file" / "below"))
    with pytest.raises(LayoutError, match="cannot create") as caught:
        layout.ensure()
    assert "FLEET_AGENT_ROOT" in caught.value.remedy


def test_a_runtime_folder_that_is_not_ours_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    with pytest.raises(LayoutError, match="mode 0755"):
        ensure_private_folder(open_folder)
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o755, "refused, not repaired"

    ours = tmp_path / "ours"
    ensure_private_folder(ours)
    link = tmp_path / "link"
    link.symlink_to(ours)
    with pytest.raises(LayoutError, match="link or a file"):
        ensure_private_folder(link)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(LayoutError, match="link or a file"):
        ensure_private_folder(file)

    owner = ours.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(LayoutError, match=f"belongs to user id {owner}"):
        ensure_private_folder(ours)


def test_the_hub_home_is_the_one_that_other_tools_on_the_host_use(tmp_path: Path) -> None:
    assert layout_of(tmp_path).hf_home == tmp_path / ".cache/huggingface"
    assert layout_of(tmp_path, XDG_CACHE_HOME="/scratch/cache").hf_home == Path("/scratch/cache/huggingface")
    assert layout_of(tmp_path, HF_HOME="~/hub").hf_home == tmp_path / "hub"
    layout = layout_of(tmp_path)
    layout.ensure()
    layout.configuration_path.write_text('{"environment": {"HF_HOME": "/data/hf"}, "model_dir": "/data/models"}')
    again = layout_of(tmp_path, HF_HOME="/elsewhere")
    assert again.hf_home == Path("/data/hf")
    assert again.model_dir == Path("/data/models")
