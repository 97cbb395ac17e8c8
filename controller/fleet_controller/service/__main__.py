"""The resident controller's process: `python -m fleet_controller.service`, started by `fleet controller start`."""

import asyncio
import logging
import signal
import sys

from fleet_controller.service.resident import take_lock, write_identity
from fleet_controller.service.server import ControllerServer
from fleet_controller.settings import Settings


async def _serve(settings: Settings) -> None:
    server = ControllerServer(settings, settings.socket_path, resident=True)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.asked_to_end.set)
    await server.start()
    write_identity(settings)
    logging.info("serving on %s", settings.socket_path)
    await server.asked_to_end.wait()
    logging.info("ending")
    await server.stop()


def main() -> int:
    """Serve until asked to end. Exit code 0 also where another one serves this state folder already."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    settings = Settings.from_environment()
    lock = take_lock(settings)
    if lock is None:
        logging.info("another controller serves %s already", settings.state_dir)
        return 0
    try:
        asyncio.run(_serve(settings))
    finally:
        settings.identity_file.unlink(missing_ok=True)
        settings.socket_path.unlink(missing_ok=True)
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
