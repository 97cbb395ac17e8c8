"""How every quantization of a model fits one host with one backend: for whoever chooses, and for a person to read.

    report = fit_report(backend, artifacts, request, resolved, pool, reserve_bytes=None)

`backend` as `candidates.backend_as_asked` gives it, `pool` as `devices.memory_pool` does, with what was observed
before; `artifacts` those that the backend takes (`candidates.usable`). The context judged is the request's, else the
longest that the model was made for. All pure.
"""

from collections.abc import Iterable

from fleet_controller.backends import Backend
from fleet_controller.domain.base import Frozen
from fleet_controller.domain.plan import DeployRequest, FitVerdict
from fleet_controller.domain.resolved import ModelArtifact, ResolvedModel
from fleet_controller.planning.candidates import fit_at, longest_context
from fleet_controller.planning.contexts import largest_context
from fleet_controller.planning.devices import MemoryPool
from fleet_controller.planning.fit import Fit


class ArtifactFit(Frozen):
    """One quantization at `context_tokens`. `margin_bytes` is what is left of the pool, negative where it lacks.

    `largest_context` is the longest that fits entirely, `largest_offloaded_context` the longest with a part on the
    CPU; None: not even the shortest does, or something is not known (`fit.unknown`).
    """

    artifact: ModelArtifact
    context_tokens: int
    longest_context: int
    fit: Fit
    largest_context: int | None = None
    largest_offloaded_context: int | None = None

    @property
    def quantization(self) -> str:
        return self.artifact.quantization

    @property
    def margin_bytes(self) -> int | None:
        return self.fit.margin_bytes

    @property
    def fits(self) -> bool:
        """Entirely, at the context asked for."""
        return self.fit.verdict is FitVerdict.FITS


class FitReport(Frozen):
    """All quantizations that were judged, in the order given."""

    backend: str
    pool: MemoryPool
    artifacts: tuple[ArtifactFit, ...]

    def of(self, quantization: str) -> ArtifactFit | None:
        return next((item for item in self.artifacts if item.quantization == quantization), None)


def fit_report(
    backend: Backend,
    artifacts: Iterable[ModelArtifact],
    request: DeployRequest,
    resolved: ResolvedModel,
    pool: MemoryPool,
    *,
    reserve_bytes: int | None = None,
) -> FitReport:
    """See the module's docstring; `reserve_bytes` is limits.memory_reserve of hosts.yaml."""
    found = []
    for artifact in artifacts:
        longest = longest_context(resolved, artifact)
        asked = request.context_length or longest

        def judge(tokens: int, artifact: ModelArtifact = artifact) -> Fit:
            return fit_at(backend, artifact, tokens, request, resolved, pool, reserve_bytes)

        found.append(
            ArtifactFit(
                artifact=artifact,
                context_tokens=asked,
                longest_context=longest,
                fit=judge(asked),
                largest_context=largest_context(judge, longest, (FitVerdict.FITS,)),
                largest_offloaded_context=largest_context(
                    judge, longest, (FitVerdict.FITS, FitVerdict.FITS_WITH_OFFLOAD)
                )
                if backend.offloads
                else None,
            )
        )
    return FitReport(backend=backend.name, pool=pool, artifacts=tuple(found))
