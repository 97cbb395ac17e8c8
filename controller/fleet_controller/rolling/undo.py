"""What an undo would need: installs that nothing runs any more, and that must not be collected yet."""

from collections.abc import Iterable

from fleet_controller.domain.rollouts import Rollout, RolloutState
from fleet_controller.planning.engine_state import WayBack


def ways_back(newest_first: Iterable[Rollout], host: str) -> tuple[WayBack, ...]:
    """Of each service's last rollout that stands on the host, the install that ran before it."""
    found: dict[str, WayBack] = {}
    for rollout in newest_first:
        part = next((one for one in rollout.hosts if one.host == host and one.touched), None)
        gone = rollout.state in (RolloutState.UNDONE, RolloutState.SUPERSEDED)
        if part is None or gone or rollout.service in found:
            continue
        key = part.before.spec.tool.install_key if part.before is not None and part.before.spec is not None else ""
        found[rollout.service] = WayBack(install_key=key, why=f"undoing rollout {rollout.number} goes back to it")
    return tuple(way for way in found.values() if way.install_key)
