"""Which Python and which installer a host gets."""

import re
from pathlib import Path

import pytest

from fleet_controller.bringup.interpreter import choose_interpreter, platform_words
from fleet_controller.bringup.wheelhouse import for_python, uv_wheel, wheel_platforms
from fleet_controller.transport.deploy_files import deploy_text
from fleet_controller.transport.discovery import HostPlatform, PythonFound
from fleet_controller.transport.errors import BringUpFailed

OLD = PythonFound((3, 9, 19), True, "/usr/bin/python3.9")
BARE = PythonFound((3, 12, 3), False, "/usr/bin/python3")
FULL = PythonFound((3, 11, 2), True, "/opt/python3.11")


def linux(*pythons: PythonFound, uv: str = "", libc: str = "glibc 2.31") -> HostPlatform:
    return HostPlatform(root="/r", os="linux", architecture="x86_64", libc=libc, pythons=pythons, uv=uv)


def choose(platform: HostPlatform, folder: Path | None = None, wanted: str | None = None, mirror: bool = False):  # type: ignore[no-untyped-def]
    return choose_interpreter("gpu1", wanted, platform, folder, mirror)


def test_a_python_that_makes_environments_needs_nothing_else() -> None:
    choice = choose(linux(OLD, FULL))
    assert (choice.python, choice.uv, choice.push_uv) == (FULL.path, "", False)


def test_the_hosts_uv_is_used_where_it_is() -> None:
    choice = choose(linux(BARE, uv="/bin/uv"))
    assert (choice.python, choice.uv, choice.push_uv) == (BARE.path, "/bin/uv", False)


def test_a_python_without_ensurepip_gets_uv_pushed() -> None:
    choice = choose(linux(BARE))
    assert (choice.python, choice.push_uv) == (BARE.path, True)


def test_no_python_gets_one_through_uv() -> None:
    choice = choose(linux(OLD))
    assert (choice.python, choice.push_uv, choice.archive) == ("", True, None)


def test_no_python_and_no_index_is_one_error_with_three_ways_out(tmp_path: Path) -> None:
    with pytest.raises(BringUpFailed) as caught:
        choose(linux(OLD, uv="/bin/uv"), tmp_path)
    for way in ("install Python 3.10", "wheel folder", "UV_PYTHON_INSTALL_MIRROR"):
        assert way in caught.value.problem.remedy
    assert choose(linux(OLD, uv="/bin/uv"), tmp_path, mirror=True).uv == "/bin/uv"


def test_an_archive_of_python_in_the_wheel_folder_is_pushed(tmp_path: Path) -> None:
    stem = "cpython-3.{}+20260101-{}-install_only.tar.gz"
    for minor, triple in (("9.9", "x86_64-unknown-linux-gnu"), ("12.1", "x86_64-unknown-linux-gnu"),
                          ("13.1", "aarch64-apple-darwin"), ("13.1", "x86_64-unknown-linux-musl")):  # fmt: skip
        (tmp_path / stem.format(minor, triple)).touch()
    archive = choose(linux(OLD), tmp_path).archive
    assert archive is not None
    assert archive.name == stem.format("12.1", "x86_64-unknown-linux-gnu")


def test_the_wheel_folder_decides_between_pythons(tmp_path: Path) -> None:
    (tmp_path / "grpcio-1.0-cp311-cp311-manylinux_2_17_x86_64.whl").touch()
    assert choose(linux(BARE, FULL), tmp_path).python == FULL.path
    assert choose(linux(BARE, FULL)).python == BARE.path


def test_a_python_named_in_hosts_yaml_is_used_or_refused() -> None:
    assert choose(linux(FULL, BARE), wanted="/opt/python3.11").python == FULL.path
    with pytest.raises(BringUpFailed, match=r"older than 3\.10"):
        choose(linux(OLD, FULL), wanted="/usr/bin/python3.9")


def test_a_platform_without_agent_is_named() -> None:
    with pytest.raises(BringUpFailed, match="freebsd amd64"):
        platform_words(HostPlatform(root="/", os="freebsd", architecture="amd64"))


@pytest.mark.parametrize(
    ("platform", "fits", "does_not"),
    [
        (linux(), "manylinux_2_17_x86_64", "manylinux_2_34_x86_64"),
        (linux(libc="musl 1.2"), "musllinux_1_2_x86_64", "manylinux_2_17_x86_64"),
        (HostPlatform(root="/", os="darwin", architecture="arm64"), "macosx_11_0_arm64", "manylinux_2_17_x86_64"),
    ],
)
def test_wheel_platforms(platform: HostPlatform, fits: str, does_not: str, tmp_path: Path) -> None:
    tags = wheel_platforms(platform)
    assert fits in tags
    assert does_not not in tags
    (tmp_path / f"uv-0.9-py3-none-{does_not}.whl").touch()
    assert uv_wheel(tmp_path, platform) is None
    (tmp_path / f"uv-0.9-py3-none-{fits}.whl").touch()
    assert uv_wheel(tmp_path, platform) is not None


@pytest.mark.parametrize("python", [(3, 10), (3, 11), (3, 13)])
def test_the_shipped_requirements_name_each_package_once_for_each_python(python: tuple[int, int]) -> None:
    kept = for_python(deploy_text("agent-requirements.txt"), python)
    names = re.findall(r"^([a-zA-Z0-9_.-]+)==", kept, re.MULTILINE)
    assert len(names) == len(set(names))
    assert {"grpcio", "protobuf", "psutil", "nvidia-ml-py", "huggingface-hub"} <= set(names)
    assert ("exceptiongroup" in names) == (python == (3, 10))
    assert ";" not in kept


def test_the_shipped_requirements_name_no_address() -> None:
    text = deploy_text("agent-requirements.txt")
    assert "://" not in text
    assert text.count("--hash=sha256:") > 50
