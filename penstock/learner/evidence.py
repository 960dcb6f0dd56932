"""What is kept and measured of a step beside the training: the archive, and audits. On rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.learner import archive
from penstock.learner.archivist import Archivist
from penstock.learner.assemble import Moment
from penstock.learner.batch import Batch
from penstock.learner.crew import Crew, Trained
from penstock.learner.deal import Share
from penstock.learner.report import finite
from penstock.learner.spoiled import Spoiled
from penstock.services.trajectory import Group
from penstock.services.versions import Version

if TYPE_CHECKING:
    import torch

    from penstock.learner.audit import Auditor
    from penstock.learner.loop_settings import LoopSettings


class Evidence:
    """Told of every step by the loop, in this order: `hold`, `wanted`, `trained`, `hold` of the next version, `audit`.

    `alive` is called with what is being done, often enough that silence means a hang.
    """

    def __init__(
        self, settings: LoopSettings, crew: Crew, auditor: Auditor | None, alive: Callable[[str], None]
    ) -> None:
        self._crew, self._auditor, self._alive = crew, auditor, alive
        engines = crew.engines
        configs = {archive.POLICY: archive.config_of(engines.policy.module)}
        if engines.has_values:
            configs[archive.VALUE] = archive.config_of((engines.critic or engines.policy).module)
        facts = {
            "learner": settings.learner.model_dump(mode="json"),
            "algorithm": settings.algorithm.model_dump(mode="json"),
        }
        self.spoiled = Spoiled(settings.nonfinite, settings.learner.max_nonfinite, facts)
        self._archivist = Archivist(
            settings.archives,
            settings.archive,
            configs,
            facts,
            settings.staleness.take_deadline,
            alive,
        )
        self._learned: tuple[Version, Batch] | None = None
        self._after: Mapping[str, torch.Tensor] = {}

    def hold(self, version: Version, weights: Mapping[str, torch.Tensor]) -> None:
        """The whole weights of `version`, which the learner has now."""
        held: dict[str, Mapping[str, torch.Tensor]] = {}
        if self._archivist.wants(version):
            held[archive.POLICY] = weights
            if self._crew.engines.has_values:
                held[archive.VALUE] = self._crew.snapshot_values()
        self._archivist.hold(held)
        self._after = weights if self._audits(version) else {}

    def wanted(self, version: Version) -> bool:
        """Whether the step that ends in `version` has to leave its log-probs."""
        return self._archivist.due(version) or self._audits(version)

    def trained(
        self,
        moment: Moment,
        groups: Sequence[Group],
        shares: Sequence[Share],
        trained: Trained,
        coefficients: Mapping[str, float],
    ) -> None:
        """A wanted step has been made, of `groups` at `moment`, with adaptive coefficients as they were then."""
        learned = archive.learned(shares, trained.logp_start)
        self._learned = (moment.now, learned)
        if self._archivist.due(moment.now.next()):
            metrics = finite(trained.metrics)
            self._archivist.keep(moment, groups, learned, metrics, coefficients, trained.applied)

    def audit(self, version: Version) -> dict[str, float]:
        """What the audit of the step that ended in `version` says; nothing where none is due."""
        if self._auditor is None or not self._audits(version) or self._learned is None:
            return {}
        start, learned = self._learned
        found = self._auditor.examine(learned, start, self._after, self._alive)
        self._after, self._learned = {}, None
        return found

    @property
    def failed(self) -> bool:
        """Whether something could not be written: there is no sense in going on, and `finish` says why."""
        return self._archivist.failed

    def finish(self) -> None:
        """Returns when everything is written. Raises PenstockError when it could not be."""
        self._archivist.wait()

    def _audits(self, version: Version) -> bool:
        return self._auditor is not None and self._auditor.due(version)
