"""`python -m fleet_agent serve | run-job FOLDER | layout | version`.

`layout` and `version` load no grpc: bring-up calls them before it knows whether an agent runs.
"""

import json
import os
import sys
from collections.abc import Sequence

from fleet_agent.problem import ProblemError

_USAGE = "usage: python -m fleet_agent serve | run-job FOLDER | layout | version"
_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_REFUSED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 well, 1 failed, 2 wrong usage, 3 refused. The reason is on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if tuple(arguments) == ("serve",):
            _leave_out_tls()
            from fleet_agent.server.app import run

            return run()
        if len(arguments) == 2 and arguments[0] == "run-job":
            from fleet_agent.jobs.runner import main as run_job

            return run_job(arguments[1])
        if tuple(arguments) == ("layout",):
            print(json.dumps(layout_document(), indent=2))
            return 0
        if tuple(arguments) == ("version",):
            from fleet_agent.version import software_version

            print(software_version())
            return 0
    except ProblemError as error:
        print(f"fleet-agent: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  what to do: {error.remedy}", file=sys.stderr)
        return _EXIT_REFUSED
    except OSError as error:  # a full or read-only disk, mostly; serve has put the traceback into its log
        print(f"fleet-agent: {error}", file=sys.stderr)
        return _EXIT_FAILED
    print(_USAGE, file=sys.stderr)
    return _EXIT_USAGE


def _leave_out_tls() -> None:
    """Keeps OpenSSL out of the server process: 1.5 MB of its idle budget, for something it never speaks.

    asyncio does without `ssl` where Python has none. Runners are processes of their own and have it.
    """
    sys.modules["ssl"] = None  # type: ignore[assignment]


def layout_document() -> dict[str, object]:
    """What bring-up must know of this host, as one JSON object: who we are, every path, and the versions."""
    import fleet_proto
    from fleet_agent.layout import Layout
    from fleet_agent.version import software_version

    layout = Layout.from_environment()
    paths = (
        "root", "machine_dir", "agent_dir", "jobs_dir", "services_dir", "logs_dir", "engines_dir", "sources_dir",
        "hf_home", "runtime_dir", "socket_path", "configuration_path", "log_path",
    )  # fmt: skip
    return {
        "machine_id": layout.machine_id,
        **{name: str(getattr(layout, name)) for name in paths},
        "model_dir": str(layout.model_dir) if layout.model_dir else None,
        "software_version": software_version(),
        "protocol": fleet_proto.PROTOCOL,
        "minimum_protocol": fleet_proto.MINIMUM_PROTOCOL,
        "python_version": ".".join(str(part) for part in sys.version_info[:3]),
        "python": sys.executable,
        "uid": os.getuid(),
    }


if __name__ == "__main__":
    sys.exit(main())
