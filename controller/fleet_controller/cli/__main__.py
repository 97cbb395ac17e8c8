"""`fleet`, and `python -m fleet_controller.cli`."""

import os
import sys


def main() -> None:
    """Run the command line and exit with its code; nothing but a message reaches the user."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core logs every closed connection to stderr
    from fleet_controller.cli.app import app
    from fleet_controller.cli.failures import exit_code_of

    try:
        app(standalone_mode=True)
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(exit_code_of(error))


if __name__ == "__main__":
    main()
