"""Which installs have served: <install>/served.json, written when a service on it is first ready.

It is a file of its own, so that install.json stays what the install wrote.
"""

import json
import logging
from pathlib import Path

from fleet_agent.jobs.store import now_unix_ms, write_json
from fleet_agent.services.journal import ServiceJournal, ServiceRecord
from fleet_agent.services.model import ServiceState

SERVED_FILE = "served.json"

_logger = logging.getLogger(__name__)


def served_unix_ms(install: Path) -> int | None:
    """When a service on this install was first ready; None = never, as far as anybody wrote down."""
    try:
        document = json.loads((install / SERVED_FILE).read_text(encoding="utf-8"))
        value = document["served_unix_ms"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, int) else None


class ServedJournal(ServiceJournal):
    """The services' journal. It hears of every service that becomes ready, and tells the service's install."""

    def __init__(self, folder: Path, engines_dir: Path) -> None:
        super().__init__(folder)
        self._engines_dir = engines_dir

    def write(self, record: ServiceRecord) -> None:
        super().write(record)
        note_ready(record, self._engines_dir)


def note_ready(record: ServiceRecord, engines_dir: Path) -> None:
    """Write down that the install has served, where the record says so and nobody has yet. Raises nothing."""
    key = record.spec.tool.install_key
    if record.condition.state is not ServiceState.READY or not key:
        return
    install = engines_dir / key
    if served_unix_ms(install) is None and (install / "install.json").is_file():
        try:
            write_json(install / SERVED_FILE, {"served_unix_ms": now_unix_ms(), "service": record.spec.name})
        except OSError as error:  # a full disk must not cost a service that just became ready
            _logger.warning("%s: that it has served could not be written down: %s", key, error)
