"""What a plain machine lacks is skipped with its reason; in CI a skip outside the listed set fails the run."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"
SURPLUS_SKIPS = 6  # an exit status of our own: running what failed once more would not mend it
_skipped: dict[str, str] = {}

# A shell starts what it puts into the background with Ctrl-C ignored, and children inherit that: tests of Ctrl-C
# would then test nothing. A handler of ours is the default again for every program that is started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Container images tend to switch bytecode off: each of the hundreds of commands here would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def llama_cpp_binaries() -> Path | None:
    """The folder with the real llama.cpp binaries: FLEET_LLAMA_CPP_BIN, else the newest in CI's cache."""
    named = os.environ.get("FLEET_LLAMA_CPP_BIN")
    if named:
        return Path(named) if (Path(named) / "llama-server").exists() else None
    base = Path(
        os.environ.get("FLEET_CI_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fleet-ci"
    )
    found = sorted(base.glob("llama.cpp/*/bin/llama-server"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def namespaces_missing() -> str | None:
    """Why hosts cannot be made as network namespaces here; None where they can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for name in ("ip", "ssh-keygen"):
        if shutil.which(name) is None:
            return f"`{name}` is not installed"
    if shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin") is None:
        return "sshd is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    namespaces = namespaces_missing()
    binaries = llama_cpp_binaries()
    for item in items:
        if namespaces and item.get_closest_marker("namespaces"):
            item.add_marker(pytest.mark.skip(reason=namespaces))
        if binaries is None and item.get_closest_marker("llama_cpp"):
            item.add_marker(pytest.mark.skip(reason="llama.cpp is not built: run .ci/llama_cpp"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        from support.parallel import long_ones_first

        long_ones_first(items)


# Where pytest-xdist is not installed, nobody calls these two.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    from support.parallel import workers_for

    return workers_for(config.args)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from support.parallel import SharedOut

    return SharedOut(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped[report.nodeid] = reason


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("FLEET_FORBID_SKIPS") != "1" or hasattr(session.config, "workerinput"):
        return  # workers tell the one that started them, which judges
    allowed = [line for line in ALLOWED_SKIPS.read_text().splitlines() if line and not line.startswith("#")]
    surplus = {node: why for node, why in _skipped.items() if not any(node.startswith(prefix) for prefix in allowed)}
    if surplus:
        session.exitstatus = SURPLUS_SKIPS
    for node, why in surplus.items():
        print(f"\nskipped, and not listed in {ALLOWED_SKIPS.name}: {node}: {why}", file=sys.stderr)


@pytest.fixture(scope="session")
def llama_cpp_bin() -> Path:
    """The folder with the real llama.cpp binaries; tests that use it carry the marker llama_cpp."""
    binaries = llama_cpp_binaries()
    if binaries is None:
        pytest.skip("llama.cpp is not built: run .ci/llama_cpp")
    return binaries
