"""From sums to a curve: figures of every size, and the fewest nodes that keep a share of the score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from understudy.core.bootstrap import NOTHING_TO_RECOVER
from understudy.core.records.graph_curve import GRAPH, Size
from understudy.core.records.metric import Metric, NotMeasured
from understudy.core.records.scorecard import Slice
from understudy.metrics import ArmSums, Bootstrap
from understudy.metrics.behaviour import ALL
from understudy.workflows._judging.card import compare
from understudy.workflows._judging.passes import CLEAN, UNDERSTUDY, Judged, tag
from understudy.workflows._running.arms import LINEAR, MEAN, arm_name


@dataclass(frozen=True)
class CurveFigures:
    """Sums of every arm on the same places, and the bootstrap they share."""

    judged: Judged
    bootstrap: Bootstrap
    unit: str = "nats"

    def size(self, arm: str, selection: str, nodes: int) -> Size:
        """One arm's figures."""
        sums, clean, b = self.judged.sums[arm], self.judged.sums[CLEAN], self.bootstrap
        graph = arm_name(GRAPH, nodes)
        known = graph in self.judged.sums and selection != GRAPH
        itself = NotMeasured(not_measured="it is the graph" if selection == GRAPH else "no graph of this size")
        return Size(
            selection=selection,
            nodes=nodes,
            l0=b.ratio(self.judged.l0[arm], self.judged.places, "latents"),
            loss=sums.loss(b),
            delta_loss=sums.delta_loss(clean, b),
            kl=sums.kl(b, unit=self.unit),
            top1_agreement=sums.top1_agreement(b),
            kept=self.kept(arm, MEAN),
            kept_beyond_linear=self.kept(arm, LINEAR),
            against_graph=sums.delta_loss(self.judged.sums[graph], b) if known else itself,
            slices=self._slices(sums, clean),
        )

    def kept(self, arm: str, baseline: str) -> Metric:
        """(loss of the baseline - loss of the arm) / (loss of the baseline - loss with everything kept)."""
        sums = self.judged.sums
        if baseline not in sums:
            return NotMeasured(not_measured=f"no {baseline} here: a module is not replaced by what it reads alone")
        if UNDERSTUDY not in sums or "loss" not in sums[arm].sums:
            return NotMeasured(not_measured="no loss")
        found = sums[arm].recovered(sums[baseline], sums[UNDERSTUDY], self.bootstrap)
        return self._nothing_to_keep(baseline) or found

    def _nothing_to_keep(self, baseline: str) -> NotMeasured | None:
        """Why a share of what all latents save over a baseline means nothing, if they save under 0.001 nats."""
        base, whole = (self.judged.sums[name] for name in (baseline, UNDERSTUDY))
        saved = (base.sums["loss"][0].sum() - whole.sums["loss"][0].sum()) / whole.count[0].sum()
        if saved >= NOTHING_TO_RECOVER:
            return None
        return NotMeasured(not_measured=f"nothing to keep: all latents save {saved:.2g} nats over the {baseline}")

    def _slices(self, sums: ArmSums, clean: ArmSums) -> list[Slice]:
        count = dict(zip(clean.slices, clean.count.sum(1), strict=True))
        return [
            Slice(
                name=value,
                column=column.name,
                share=float(count[part] / count[ALL]),
                **compare(clean, sums, self.bootstrap, part),
            )
            for column in self.judged.labels
            for value in column.values
            if count[part := f"{tag(column)}/{value}"]
        ]

    def enough(self, ends: Sequence[tuple[int, str]], baseline: str, share: float) -> Metric:
        """The fewest nodes that keep `share` of the score: where the curve first reaches it, between the sizes on
        either side by the logarithm of nodes. ends: (nodes, arm) of one selection, smallest first.

        NotMeasured if no size reaches it, or the smallest one does already.
        """
        sums = self.judged.sums
        if baseline not in sums or "loss" not in sums[CLEAN].sums:
            return NotMeasured(not_measured=f"no {baseline} here")
        if not ends:
            return NotMeasured(not_measured="no graph was run")
        if reason := self._nothing_to_keep(baseline):
            return reason
        losses = {"base": sums[baseline].sums["loss"][0], "full": sums[UNDERSTUDY].sums["loss"][0]}
        losses |= {f"at{i}": sums[arm].sums["loss"][0] for i, (_, arm) in enumerate(ends)}
        s = self.bootstrap.sums(**losses)
        kept = np.stack([(s["base"] - s[f"at{i}"]) / (s["base"] - s["full"]) for i in range(len(ends))], 1)
        found = crossing(kept, np.array([n for n, _ in ends], float), share)
        if kept[0, 0] >= share:
            return NotMeasured(not_measured=f"already {kept[0, 0]:.0%} with {ends[0][0]} nodes: ask for fewer")
        if np.isnan(found[0]):
            return NotMeasured(not_measured=f"not reached with {ends[-1][0]} nodes, which keep {kept[0, -1]:.0%}")
        return self.bootstrap.summarise(found, "nodes", self.bootstrap.n_units)


def crossing(kept: np.ndarray, nodes: np.ndarray, share: float) -> np.ndarray:
    """Where each row of `kept` [draws, sizes] first reaches `share`, linear in log nodes; NaN where it never does."""
    above = kept >= share
    at = above.argmax(1)
    rows = np.arange(len(kept))
    before = np.maximum(at - 1, 0)
    low, high = kept[rows, before], kept[rows, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(at > 0, (share - low) / (high - low), 0.0)
    log = np.log(nodes)
    where = np.exp(log[before] + part * (log[at] - log[before]))
    return np.where(above.any(1), where, np.nan)
