"""The wheels that bring-up makes of our own packages are wheels: any installer takes them, any Python imports them."""

import subprocess
import sys
import zipfile
from pathlib import Path

from fleet_controller.bringup.wheels import agent_release, build_wheel, release_of


def package(folder: Path) -> Path:
    root = folder / "sample_package"
    (root / "deep" / "__pycache__").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "deep" / "__init__.py").write_text("VALUE = 7\n")
    (root / "deep" / "__pycache__" / "x.pyc").write_bytes(b"old")
    (root / "py.typed").write_text("")
    return root


def test_the_same_files_give_the_same_bytes_and_any_change_other_ones(tmp_path: Path) -> None:
    root = package(tmp_path)
    first = build_wheel("sample-package", "1.2", root, [])
    assert build_wheel("sample-package", "1.2", root, []) == first
    names = zipfile.ZipFile(__import__("io").BytesIO(first[1])).namelist()
    assert "sample_package/deep/__init__.py" in names
    assert not [name for name in names if "pycache" in name]
    (root / "deep" / "__init__.py").write_text("VALUE = 8\n")
    assert build_wheel("sample-package", "1.2", root, [])[1] != first[1]


def test_pip_installs_it_with_its_metadata(tmp_path: Path) -> None:
    name, data = build_wheel("sample-package", "1.2", package(tmp_path), ["grpcio"])
    (tmp_path / name).write_bytes(data)
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(tmp_path / name)], check=True)
    code = (
        "import sample_package.deep as d, importlib.metadata as m; "
        "print(d.VALUE, m.version('sample-package'), m.requires('sample-package'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "7 1.2 ['grpcio']"


def test_the_agents_layout_runs_straight_from_the_wheels(tmp_path: Path) -> None:
    paths = []
    for name, data in agent_release().wheels.items():
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    environment = {"PYTHONPATH": ":".join(paths), "HOME": str(tmp_path), "FLEET_MACHINE_ID": "one"}
    # -S: no site-packages, as on a host that has nothing of ours.
    command = [sys.executable, "-S", "-m", "fleet_agent", "layout"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f'"root": "{tmp_path}/.local/share/fleet"' in done.stdout


def test_a_release_is_named_by_its_content() -> None:
    wheels = {"llmfleet_agent-0.3-py3-none-any.whl": b"a", "llmfleet_proto-0.3-py3-none-any.whl": b"p"}
    name = release_of(wheels, "grpcio==1").name
    assert name.startswith("0.3+")
    assert release_of(wheels, "grpcio==2").name != name
    assert release_of({**wheels, "llmfleet_proto-0.3-py3-none-any.whl": b"q"}, "grpcio==1").name != name
