"""`fleet`, and `python -m fleet_controller.cli`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its code; nothing but a message reaches the user."""
    for name in ("stdout", "stderr"):  # closed by the caller (`fleet ps >&-`): Python has None there
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open until the process ends
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core logs every closed connection to stderr
    try:
        from fleet_controller.cli.app import app
        from fleet_controller.cli.failures import exit_code_of
    except KeyboardInterrupt:  # nothing has begun that could be ended or told of
        sys.exit(130)
    try:
        app(standalone_mode=True)
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(exit_code_of(error, as_json="--json" in sys.argv[1:]))


if __name__ == "__main__":
    main()
