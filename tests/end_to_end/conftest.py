"""One lab for all end-to-end tests: bringing three hosts up costs more than most of the tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.lab import Lab, lab_of_three


@pytest.fixture(scope="session")
def three_hosts(llama_cpp_bin: Path) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="fleet-e2e-"))  # short: sockets are made below it
    try:
        with lab_of_three(folder, llama_cpp_bin) as lab:
            yield lab
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(three_hosts: Lab) -> Iterator[Lab]:
    """The three hosts, up and reachable, with no model on them at the start and the end."""
    yield three_hosts
    three_hosts.clear()
