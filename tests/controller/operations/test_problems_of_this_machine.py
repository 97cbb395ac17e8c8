"""What a user reads where the controller's own machine is the trouble: no defect of fleet, and nothing to report."""

import errno
import os
import sqlite3

import pytest

from fleet_controller.operations.problems import problem_of


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state/x"), "No space left on device: state/x"),
        (sqlite3.OperationalError("database or disk is full"), "the controller's database: database or disk is full"),
    ],
)
def test_a_full_disk_is_called_that(error: Exception, said: str) -> None:
    problem = problem_of(error)
    assert said in problem.message and "fleet doctor" in problem.remedy
    assert "unexpectedly" not in problem.message and "report" not in problem.remedy


def test_a_defect_is_still_called_one() -> None:
    assert "unexpectedly: KeyError" in problem_of(KeyError("x")).message
