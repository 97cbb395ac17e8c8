"""The disk check before work: what a job still has to write, against what is free."""

from pathlib import Path

from fleet_agent.artifacts.cache import HubCache
from fleet_agent.jobs.errors import disk_full
from fleet_agent.jobs.model import JobSpec
from fleet_agent.layout import Layout
from fleet_agent.steps.output import existing_parent, free_bytes


def model_bytes(spec: JobSpec, cache: HubCache) -> tuple[int, int]:
    """(bytes of all model files of the job, bytes of them that are not on the disk yet)."""
    total = missing = 0
    for step in spec.steps:
        if step.hub_download is None:
            continue
        for file in step.hub_download.files:
            total += file.size_bytes
            missing += max(0, file.size_bytes - cache.present_bytes(step.hub_download.repository, file))
    return total, missing


def check_disk(spec: JobSpec, layout: Layout, finished_steps: frozenset[int]) -> None:
    """Raises JobProblem "disk-full" where the job cannot fit.

    `disk_needed_bytes` covers engines and models together; what is there already (a resumed download, a step
    finished by a former runner) needs no more room.
    """
    cache = HubCache(layout.hf_home)
    models_total, models_missing = model_bytes(spec, cache)
    builds_left = [n for n, s in enumerate(spec.steps) if s.hub_download is None and n not in finished_steps]
    engines_missing = max(0, spec.disk_needed_bytes - models_total) if builds_left else 0
    demands: dict[int, tuple[Path, int]] = {}
    for path, needed in ((layout.engines_dir, engines_missing), (cache.folder, models_missing)):
        device = existing_parent(path).stat().st_dev
        before = demands.get(device, (path, 0))
        demands[device] = (path if needed > before[1] else before[0], before[1] + needed)
    for path, needed in demands.values():
        free = free_bytes(path)
        if free is not None and needed > free:
            raise disk_full(path, needed, free)
