"""Whatever rollouts come after one another, wherever they are cut off: undoing them all brings back what ran first."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_controller.domain.plan import DeployRequest, HostPlan, PlanAction
from fleet_controller.domain.rollouts import Before, HostPhase, Rollout, RolloutHost, RolloutState, Strategy
from fleet_controller.domain.services import ServiceSpec
from fleet_controller.operations.planning import PlannedHost, StoredPlan
from fleet_controller.operations.rollout_changes import _FITS, RolloutAction
from fleet_controller.operations.rollout_making import _created
from fleet_controller.planning.plan import PlannedDeployment
from fleet_controller.rolling.neighbours import later_one
from fleet_controller.rolling.next_step import resumed
from fleet_controller.rolling.store import RolloutStore
from fleet_controller.state import StateDatabase

HOSTS = ("a", "b", "c")
SERVICES = ("m", "n")


class Lab:
    """What runs on each host, as (service, host): context, and the rollouts as the database has them."""

    def __init__(self, store: RolloutStore) -> None:
        self.store = store
        self.runs: dict[tuple[str, str], int] = {("m", "a"): 1, ("n", "b"): 1}

    def deploy(self, service: str, context: int, hosts: list[str], ends: list[HostPhase]) -> None:
        """`ends`: how each host that changes ends; where they are used up, the controller dies."""
        plan = StoredPlan(
            plan_id="p", request=DeployRequest(), hosts=tuple(self._planned(service, context, host) for host in hosts)
        )
        names = [item.shown.host for item in plan.hosts if item.shown.action is PlanAction.START]
        if names:
            self.carry_out(_created(self.store, plan, names, dict.fromkeys(names, 0), Strategy()), context, ends)

    def carry_out(self, rollout: Rollout, context: int, ends: list[HostPhase]) -> None:
        waiting = [host for host in rollout.hosts if host.phase is HostPhase.WAITING]
        for host, end in zip(waiting, ends, strict=False):
            place = (rollout.service, host.host)
            changed = host.model_copy(update={"phase": end, "before": host.before or self._before(*place)})
            if end in (HostPhase.CHANGED, HostPhase.CHANGING):  # one that is cut off may have been changed
                self.runs[place] = context
            elif end is HostPhase.AWAY:  # it did not even say what it runs
                changed = host.model_copy(update={"phase": end})
            self.store.set_host(rollout.number, changed)
            if end is HostPhase.FAILED:
                self._restore(changed, rollout.service)
                self.store.set_state(rollout.number, RolloutState.STOPPED)
                return
            if end is HostPhase.CHANGING:
                return
        if len(ends) >= len(waiting):
            self.store.set_state(rollout.number, RolloutState.DONE)

    def resume(self) -> None:
        """The newest that may be gone on with."""
        for rollout in self.store.newest(500):
            again = resumed(rollout)
            names = [host.host for host in again.of(HostPhase.WAITING)]
            others = self.store.of_service(rollout.service)
            if rollout.state in _FITS[RolloutAction.RESUME] and names and later_one(rollout, others, names) is None:
                self.store.save(again)
                context = StoredPlan.model_validate_json(self.store.plan(rollout.number)).hosts[0].shown.context_length
                self.carry_out(again, context, [HostPhase.CHANGED] * len(names))
                return

    def undo_newest(self) -> bool:
        """False where none is left that can be undone."""
        for rollout in self.store.newest(500):
            names = [host.host for host in rollout.hosts]
            others = self.store.of_service(rollout.service)
            if rollout.state in _FITS[RolloutAction.UNDO] and later_one(rollout, others, names) is None:
                for host in rollout.hosts:
                    if host.touched:
                        self._restore(host, rollout.service)
                        self.store.set_host(
                            rollout.number, host.model_copy(update={"phase": HostPhase.UNDONE})
                        )  # fmt: skip
                self.store.set_state(rollout.number, RolloutState.UNDONE)
                return True
        return False

    def _planned(self, service: str, context: int, host: str) -> PlannedHost:
        action = PlanAction.KEEP if self.runs.get((service, host)) == context else PlanAction.START
        spec = ServiceSpec(name=service, context_length=context)
        shown = HostPlan(host=host, action=action, service=spec, context_length=context)
        return PlannedHost(deployment=PlannedDeployment(plan=shown))

    def _before(self, service: str, host: str) -> Before:
        context = self.runs.get((service, host))
        return Before() if context is None else Before(spec=ServiceSpec(name=service, context_length=context))

    def _restore(self, host: RolloutHost, service: str) -> None:
        if host.before is not None and host.before.spec is not None:
            self.runs[service, host.host] = host.before.spec.context_length
        elif host.before is not None:
            self.runs.pop((service, host.host), None)


ENDS = st.lists(
    st.sampled_from([HostPhase.CHANGED, HostPhase.CHANGED, HostPhase.FAILED, HostPhase.CHANGING, HostPhase.AWAY]),
    max_size=4,
)
DEPLOYS = st.tuples(
    st.sampled_from(SERVICES), st.integers(2, 4), st.lists(st.sampled_from(HOSTS), min_size=1, unique=True), ENDS
)
STEPS = st.lists(st.one_of(DEPLOYS, st.sampled_from(["undo", "resume"])), max_size=8)


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_undoing_all_of_them_brings_back_what_ran_first(steps: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = StateDatabase(Path(folder) / "fleet.db")
        lab = Lab(RolloutStore(database))
        first = dict(lab.runs)
        for step in steps:
            if step == "undo":
                lab.undo_newest()
            elif step == "resume":
                lab.resume()
            else:
                lab.deploy(*step)  # type: ignore[misc]
        while lab.undo_newest():
            pass
        assert lab.runs == first
        database.close()
