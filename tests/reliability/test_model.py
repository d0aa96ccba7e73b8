"""Any sequence of calls ends as a model of the whole API says, call by call."""

from collections.abc import Callable
from pathlib import Path

import pytest
from driver import Driver
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from reliability.conftest import Counter
from reliability.machine import Machine


@pytest.mark.timeout(900)
def test_any_sequence(
    big_pool: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    ground: str,
    counted: Counter,
    thorough: bool,
) -> None:
    """Status codes, answers, mounts and what was written are as predicted, also after a crash."""
    driver = serve(big_pool)

    class MachineHere(Machine):
        pass

    MachineHere.driver, MachineHere.pool = driver, big_pool
    MachineHere.folder, MachineHere.ground = tmp_path, ground
    run_state_machine_as_test(
        MachineHere,
        settings=settings(
            max_examples=30 if thorough else 3,
            stateful_step_count=60 if thorough else 40,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a driver that has failed is no place to look for less
            derandomize=not thorough,
            suppress_health_check=list(HealthCheck),
        ),
    )
    counted("calls predicted by the model", MachineHere.calls)
