"""What an undo would need: installs and model files that nothing runs any more, and that must not be collected yet."""

from collections.abc import Iterable

from fleet_controller.domain.rollouts import Rollout, RolloutState
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.planning.engine_state import WayBack


def ways_back(newest_first: Iterable[Rollout], host: str) -> tuple[WayBack, ...]:
    """The installs among what `specs_back` gives."""
    return tuple(
        WayBack(install_key=spec.tool.install_key, why=f"undoing rollout {number} goes back to it")
        for number, spec in specs_back(newest_first, host)
        if spec.tool.install_key
    )


def specs_back(newest_first: Iterable[Rollout], host: str) -> tuple[tuple[int, ServiceSpec], ...]:
    """Of each service's last rollout that stands on the host: its number, and what ran before it."""
    found: dict[str, tuple[int, ServiceSpec | None]] = {}
    for rollout in newest_first:
        part = next((one for one in rollout.hosts if one.host == host and one.touched), None)
        gone = rollout.state in (RolloutState.UNDONE, RolloutState.SUPERSEDED)
        if part is not None and not gone and rollout.service not in found:
            found[rollout.service] = rollout.number, part.before.spec if part.before is not None else None
    return tuple((number, spec) for number, spec in found.values() if spec is not None)
