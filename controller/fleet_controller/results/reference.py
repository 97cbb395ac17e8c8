"""The reference rows that ship with fleet, and their way into the database, where they are marked as such."""

import hashlib

from fleet_controller.results.store import load_run, replace_reference
from fleet_controller.state import StateDatabase
from fleet_inventory.reference_data import reference_files

RUN_PREFIX = "reference-"
# Raise it when reference_files.py makes other rows of the same data.
READER_VERSION = 1


def sync_reference(database: StateDatabase) -> None:
    """Put the shipped rows into the database, where they are not there yet as this version ships them."""
    files = reference_files()
    digest = hashlib.sha256(b"".join([b"%d" % READER_VERSION, *(path.read_bytes() for path in files)])).hexdigest()[:12]
    prefix = f"{RUN_PREFIX}{digest}"
    if load_run(database, f"{prefix}-1") is None:
        from fleet_controller.results.reference_files import load_reference  # the other calls need not pay for it

        results, runs = load_reference(files, prefix)
        replace_reference(database, results, runs, RUN_PREFIX)
