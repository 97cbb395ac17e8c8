"""Who needs which install and which source: services by their specs, unfinished jobs by theirs."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fleet_agent.jobs.model import JobSpec
from fleet_agent.services.model import ServiceSpec


@dataclass(frozen=True)
class Uses:
    """Names of services and ids of jobs, by install key and by source key."""

    services: dict[str, tuple[str, ...]] = field(default_factory=dict)
    jobs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_uses(services: Iterable[ServiceSpec], jobs: Iterable[tuple[str, JobSpec]]) -> Uses:
    """`jobs` are the unfinished ones, as (id, spec). A stopped service counts: it would start on its install."""
    by_service: dict[str, tuple[str, ...]] = {}
    by_job: dict[str, tuple[str, ...]] = {}
    by_source: dict[str, tuple[str, ...]] = {}
    for spec in services:
        for key in _values(spec, "install_key"):
            by_service[key] = (*by_service.get(key, ()), spec.name)
    for job_id, job in jobs:
        for key in _values(job, "install_key"):
            by_job[key] = (*by_job.get(key, ()), job_id)
        for key in _values(job, "source_key"):
            by_source[key] = (*by_source.get(key, ()), job_id)
    return Uses(by_service, by_job, by_source)


def _values(value: Any, name: str) -> tuple[str, ...]:
    """What the fields of this name hold, anywhere within a dataclass; each once, without empty ones."""
    return tuple(dict.fromkeys(text for text in _walk(value, name) if text))


def _walk(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, tuple):
        for item in value:
            yield from _walk(item, name)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            inner = getattr(value, one.name)
            if one.name == name and isinstance(inner, str):
                yield inner
            else:
                yield from _walk(inner, name)
