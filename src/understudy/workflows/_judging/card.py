"""From sums to figures: the parts of a scorecard."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import Sequences
from understudy.core.names import short_name
from understudy.core.network import Network
from understudy.core.records.metric import Metric, NotMeasured, exact
from understudy.core.records.scorecard import Behaviour, DictionaryRow, Positions, Recovered, Rival, Slice
from understudy.data import Packed
from understudy.metrics import ArmSums, Bootstrap, Dead, NGrams, equivalent_ngram
from understudy.metrics.behaviour import ALL, POSITION_NAMES
from understudy.workflows._judging.arms import ABLATIONS, Arm
from understudy.workflows._judging.passes import CLEAN, UNDERSTUDY, Judged, Local, tag
from understudy.workflows._judging.rungs import LadderSums


@dataclass(frozen=True)
class Figures:
    """Sums of every arm on the same places, the bootstrap they share, and the n-gram yardstick."""

    judged: Judged
    bootstrap: Bootstrap
    ngrams: np.ndarray | NotMeasured
    """Losses summed by sequence, [orders, n_sequences]."""
    ladder: LadderSums | NotMeasured
    divergence_unit: str = "nats"

    @property
    def sums(self) -> dict[str, ArmSums]:
        return self.judged.sums

    @property
    def n_places(self) -> int:
        return int(self.sums[CLEAN].count[0].sum())

    def behaviour(self, name: str = UNDERSTUDY) -> Behaviour:
        """How the network behaves with an arm in place."""
        arm, clean, b = self.sums[name], self.sums[CLEAN], self.bootstrap
        return Behaviour(
            loss_clean=clean.loss(b),
            loss_replaced=arm.loss(b),
            delta_loss=arm.delta_loss(clean, b),
            kl=arm.kl(b, unit=self.divergence_unit),
            top1_agreement=arm.top1_agreement(b),
            recovered=Recovered(**{a: self._recovered(arm, a) for a in ABLATIONS}),
            equivalent_ngram=self._order(arm),
            equivalent_compute=self._compute(arm),
        )

    def _recovered(self, arm: ArmSums, ablation: str) -> Metric:
        if ablation not in self.sums:
            return NotMeasured(not_measured=f"no {ablation} ablation at these sites")
        return arm.recovered(self.sums[ablation], self.sums[CLEAN], self.bootstrap)

    def _order(self, arm: ArmSums) -> Metric:
        if isinstance(self.ngrams, NotMeasured) or "loss" not in arm.sums:
            return self.ngrams if isinstance(self.ngrams, NotMeasured) else NotMeasured(not_measured="no loss")
        return equivalent_ngram(self.bootstrap, arm.sums["loss"][0], self.ngrams, arm.count[0])

    def _compute(self, arm: ArmSums) -> Metric:
        return self.ladder.compute(arm, self.bootstrap) if isinstance(self.ladder, LadderSums) else self.ladder

    def rival(self, arm: Arm) -> Rival:
        """An arm compared with the understudy, sequence by sequence."""
        return Rival(
            l0=self.bootstrap.ratio(self.judged.l0[arm.name], self.judged.places, "latents"),
            replacement=self.behaviour(arm.name),
            paired_delta_loss=self.sums[arm.name].delta_loss(self.sums[UNDERSTUDY], self.bootstrap),
            is_oracle=arm.is_oracle,
            note=arm.note,
        )

    def slices(self) -> list[Slice]:
        """By the labels of the predicted token, column by column; values without a scored place are left out."""
        clean = self.sums[CLEAN]
        counts = dict(zip(clean.slices, clean.count.sum(1), strict=True))
        return [
            Slice(name=value, column=column.name, share=float(counts[part] / counts[ALL]), **self._part(part))
            for column in self.judged.labels
            for value in column.values
            if counts[part := f"{tag(column)}/{value}"]
        ]

    def positions(self) -> list[Positions]:
        return positions(self.sums[CLEAN], self.sums[UNDERSTUDY], self.bootstrap)

    def _part(self, part: str) -> dict[str, Metric]:
        return compare(self.sums[CLEAN], self.sums[UNDERSTUDY], self.bootstrap, part)

    def ngram_losses(self) -> dict[str, Metric]:
        if isinstance(self.ngrams, NotMeasured):
            return {}
        counts = self.sums[CLEAN].count[0]
        return {str(order): self.bootstrap.ratio(losses, counts, "nats") for order, losses in enumerate(self.ngrams)}


def compare(clean: ArmSums, arm: ArmSums, bootstrap: Bootstrap, part: str) -> dict[str, Metric]:
    """The three losses of one slice."""
    return {
        "loss_clean": clean.loss(bootstrap, part),
        "loss_replaced": arm.loss(bootstrap, part),
        "delta_loss": arm.delta_loss(clean, bootstrap, part),
    }


def positions(clean: ArmSums, arm: ArmSums, bootstrap: Bootstrap) -> list[Positions]:
    """By position in the sequence, in buckets that grow fourfold."""
    out = []
    for name in POSITION_NAMES:
        part = f"position/{name}"
        if clean.count[clean.slices.index(part)].any():
            first, _, last = name.partition("-")
            out.append(Positions(first=int(first), last=int(last or first), **compare(clean, arm, bootstrap, part)))
    return out


def not_run(reason: NotMeasured) -> Behaviour:
    """The behaviour of what cannot run in the network's place."""
    recovered = Recovered(zero=reason, mean=reason, position_mean=reason, resample=reason)
    return Behaviour(
        loss_clean=reason,
        loss_replaced=reason,
        delta_loss=reason,
        kl=reason,
        top1_agreement=reason,
        recovered=recovered,
        equivalent_ngram=reason,
        equivalent_compute=reason,
    )


def dictionary_rows(network: Network, local: Local, bootstrap: Bootstrap) -> list[DictionaryRow]:
    """One row for each written site; latents are counted at the site that their dictionary writes first."""
    out = []
    for site, reconstruction in local.sites.items():
        nearest = next((i for i, m in enumerate(local.group.members) if m.writes[0] == site), 0)
        counter, member = local.sparsity[nearest], local.group.members[nearest]
        dead, histogram = counter.dead(), counter.density_histogram()
        out.append(
            DictionaryRow(
                site=str(site),
                name=short_name(network, site),
                kind=member.kind,
                n_latents=member.n_latents,
                fvu=reconstruction.fvu(bootstrap),
                l0=counter.l0(bootstrap),
                dead=dead.share if isinstance(dead, Dead) else dead,
                shrinkage=reconstruction.shrinkage(bootstrap),
                largest_norm=_largest_norm(local.norms.get(site, [])),
                density=tuple(histogram.counts.tolist()),
                density_edges=tuple(histogram.edges.tolist()),
            )
        )
    return out


def _largest_norm(found: list[Tensor]) -> Metric:
    """The largest norm over the median: above some tens, a few massive activations rule every squared error."""
    norms = torch.cat(found) if found else torch.zeros(0)
    if len(norms) == 0 or not float(norms.median()):
        return NotMeasured(not_measured="the median activation is 0")
    return exact(float(norms.max() / norms.median()), "medians", len(norms))


def ngram_sums(network: Network, train: Sequences, held_out: Sequences, picked) -> np.ndarray | NotMeasured:
    """Losses of n-gram models, counted on the training split, summed by sequence on the scored places: [orders, n]."""
    if not isinstance(train, Packed) or not isinstance(held_out, Packed):
        return NotMeasured(not_measured="n-grams need token sequences")
    largest = int(max(train.tokens.max(), held_out.tokens.max()))
    vocabulary = max(network.vocab_size, largest + 1)
    model = NGrams.fit(train.tokens, train.document, vocabulary)
    batch = held_out.batch(picked)
    assert batch.targets is not None
    tokens, document = held_out.tokens[picked], held_out.document[picked]
    return model.losses(tokens, document, batch.targets != -100).double().sum(-1).numpy()
