"""A graph of one input as an expression, beside the same graph run in place and the network under edits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.correlation import spearman
from understudy.core.dictionary import Dictionary, Group
from understudy.core.graph import Graph
from understudy.core.latents import Latents
from understudy.core.network import Network
from understudy.core.records.errors import BadInput
from understudy.core.records.expressed import Expressed, Expressions
from understudy.core.records.graph_curve import ACTIVATION, GRAPH, RANDOM
from understudy.core.records.metric import Metric, NotMeasured, exact
from understudy.core.records.progress import Progress
from understudy.core.replacement import INTERVENE, STANDALONE, EditLatents, Policy, Replacement
from understudy.edits import Expression
from understudy.edits.graph_groups import owners
from understudy.metrics import Bootstrap
from understudy.workflows._running.own_input import node_rankings, pruned, target_places

EDITS = 64
"""Latents removed one at a time."""
AT_ONCE = 16


def expressed(
    graph: Graph, network: Network, groups: Sequence[Group], batch: Batch, sizes: Sequence[int], seed: int,
    skip_first: int, progress: Progress,
) -> Expressions:  # fmt: skip
    """Every size by influence, at random and by activation, and the whole graph.

    Raises BadInput where no latent is on, or latents cannot be removed at a place.
    """
    whole = Expression(graph)
    judge = _Live(graph, network, groups, batch, seed)
    rankings = {k: r for k, r in node_rankings(graph, seed).items() if k in (GRAPH, RANDOM, ACTIVATION)}
    total = len(rankings[GRAPH])
    wanted = [(name, m) for name in rankings for m in sizes if m < total] + [(GRAPH, total)]
    rows = []
    with progress.task("evaluating expressions", len(wanted), "graphs") as task:
        for i, (name, m) in enumerate(wanted):
            kept = torch.zeros(len(graph), dtype=torch.bool)
            kept[rankings[name][:m]] = True
            parts = pruned(graph, groups, rankings[name][:m])
            rows.append(judge.row(name, m, kept, Replacement(network, parts, skip_first)))
            task.update(i + 1)
    kept_back = whole.values(measured=True)[0] - whole.clean
    return Expressions(
        edits=len(judge.removed),
        whole_error=float(kept_back[graph.nodes.computed].abs().max()),
        mass=judge.mass,
        rows=rows,
    )


class _Live:
    """The network's targets under edits, and what expressions say of them."""

    def __init__(self, graph: Graph, network: Network, groups: Sequence[Group], batch: Batch, seed: int) -> None:
        self.graph, self.network, self.batch = graph, network, batch
        self.targets = graph.nodes.where("target").nonzero().squeeze(-1)
        cards = [graph.card.targets[int(i)] for i in graph.nodes.latent[self.targets]]
        self.weights = torch.tensor([c.weight for c in cards], dtype=torch.float64)
        self.outputs = [c.output for c in cards]
        places = graph.nodes.place[self.targets].long()
        self.places = torch.where(places >= 0, places, torch.tensor(target_places(graph)[-1]))
        output = network.forward(batch)
        self.clean = self._scores(output)
        self.mass = self._mass(output)
        self.removed = self._removed(seed)
        members = [m for g in groups for m in g.members]
        self.order = {i: members.index(d) for i, d in owners(graph, groups).items()}
        whole = Replacement(network, groups)
        self.changes = None if self.clean is None else self._changes(whole, INTERVENE)
        self.bootstrap = Bootstrap(len(self.removed), seed)

    def _scores(self, output) -> Tensor | None:
        """[b, targets] of an output, fp64; None where targets are not outputs."""
        if any(o is None for o in self.outputs):
            return None
        scores = self.network.scores(output)
        scores = scores.reshape(scores.shape[0], -1, scores.shape[-1]).double()
        scores = scores - scores.mean(-1, keepdim=True)
        return scores[:, self.places, torch.tensor(self.outputs)]

    def _mass(self, output) -> Metric:
        """The network's probability of the targets together, or why there is no distribution over them."""
        if self.clean is None:
            return NotMeasured(not_measured="the targets are not outputs")
        if len(self.places.unique()) > 1 or len(set(self.outputs)) < 2:
            return NotMeasured(not_measured="a distribution needs two outputs of one place as targets")
        if self.network.divergence_unit != "nats":
            return NotMeasured(not_measured="the outputs are numbers, not a distribution")
        scores = self.network.scores(output)
        place = scores.reshape(-1, scores.shape[-1])[self.places[0]]
        return exact(float(place.double().softmax(-1)[torch.tensor(self.outputs)].sum()), "fraction", len(self.targets))

    def _kl(self, scores: Tensor) -> Metric:
        """KL(network || what has these scores of the targets), renormalised over them."""
        if isinstance(self.mass, NotMeasured):
            return self.mass
        assert self.clean is not None
        own, other = self.clean[0].log_softmax(-1), scores.log_softmax(-1)
        return exact(float((own.exp() * (own - other)).sum()), "nats", len(self.targets))

    def _removed(self, seed: int) -> Tensor:
        """Latents that are on, at random."""
        nodes = self.graph.nodes
        on = (nodes.where("latent") & (nodes.value > nodes.threshold)).nonzero().squeeze(-1)
        if len(on) < 2:
            raise BadInput(f"--expression removes latents that are on; this graph has {len(on)}.")
        order = torch.randperm(len(on), generator=torch.Generator().manual_seed(seed + 1))
        return on[order[:EDITS]]

    @torch.no_grad()
    def _changes(self, replacement: Replacement, policy: Policy) -> Tensor:
        """What removing each latent does to the targets, [edits, targets]: of the live network, or of a graph that runs
        in its place."""
        members = [m for g in replacement.groups for m in g.members]
        before = self._scores(replacement.run(self.batch, policy, edits={}).output)
        out = []
        for nodes in self.removed.split(AT_ONCE):
            batch = _repeated(self.batch, len(nodes))
            after = self._scores(replacement.run(batch, policy, edits=self._edits(members, nodes)).output)
            assert after is not None
            assert before is not None
            out.append(after - before)
        return torch.cat(out)

    def _edits(self, members: Sequence[Dictionary], nodes: Tensor) -> dict[Dictionary, EditLatents]:
        """The i-th of `nodes` set to 0 in the i-th sequence, at its place."""
        table = self.graph.nodes
        n_places = int(torch.tensor(self.graph.card.shape).prod())
        edits: dict[Dictionary, EditLatents] = {}
        for i, position in self.order.items():
            member = members[position]
            mine = (table.dictionary[nodes] == i).nonzero().squeeze(-1)
            if not len(mine):
                continue
            rows = mine * n_places + table.place[nodes[mine]].long()
            ids = table.latent[nodes[mine]].long()

            def edit(z: Latents, rows=rows, ids=ids, member=member) -> Latents:
                if len(z.offsets) - 1 != len(nodes) * n_places:
                    raise BadInput(
                        f"--expression removes latents at single places, but {member} is called for one at a time."
                    )
                return z.put(rows, ids, torch.zeros(len(rows)).to(z.values))

            edits[member] = edit
        return edits

    def row(self, selection: str, size: int, kept: Tensor, in_place: Replacement) -> Expressed:
        leaves = ~self.graph.nodes.computed
        part = self.graph.keep(kept | leaves)
        number = torch.cumsum((kept | leaves | self.graph.nodes.where("target")).long(), 0) - 1
        targets = number[self.targets]
        expression, linear = Expression(part), Expression(part, thresholds=False)
        says = expression.values()[0, targets]
        own = self.clean[0] if self.clean is not None else self.graph.nodes.value[self.targets].double()
        run = self._scores(in_place.run(self.batch).output)
        unit, n = "logits" if self.clean is not None else "of the target", len(self.targets)
        not_output = NotMeasured(not_measured="the targets are not outputs, so edits are not followed to them")
        agree: dict[str, Metric] = dict.fromkeys(("r2", "rank", "in_place", "linear", "than_linear"), not_output)
        if self.changes is not None:
            at = torch.where(kept[self.removed], number[self.removed], -1)
            predicted, without = (self._predicted(e, at, targets) for e in (expression, linear))
            agree = self._agreement(predicted, without, self._changes(in_place, STANDALONE))
        return Expressed(
            selection=selection, nodes=size, error=exact(self._mean((says - own).abs()), unit, n),
            in_place=not_output if run is None else exact(self._mean((run[0] - own).abs()), unit, n),
            kl=self._kl(says), kl_in_place=not_output if run is None else self._kl(run[0]),
            r2=agree["r2"], rank=agree["rank"], r2_in_place=agree["in_place"], r2_linear=agree["linear"],
            than_linear=agree["than_linear"],
        )  # fmt: skip

    def _mean(self, values: Tensor) -> float:
        return float((values * self.weights).sum() / self.weights.sum())

    @staticmethod
    def _predicted(expression: Expression, at: Tensor, targets: Tensor) -> Tensor:
        """Changes of the targets, [edits, targets]; 0 for latents that are not kept (at < 0)."""
        out = torch.zeros(len(at), len(targets), dtype=torch.float64)
        inside = at >= 0
        if bool(inside.any()):
            before = expression.values()[:, targets]
            out[inside] = expression.values(expression.without(at[inside]))[:, targets] - before
        return out

    def _agreement(self, predicted: Tensor, linear: Tensor, ran: Tensor) -> dict[str, Metric]:
        assert self.changes is not None
        live, weight = self.changes, self.weights
        whole = ((live**2) * weight).sum(1).numpy()
        missed, missed_linear, missed_in_place = (
            (((p - live) ** 2) * weight).sum(1).numpy() for p in (predicted, linear, ran)
        )
        b = self.bootstrap
        pairs = np.stack([predicted.numpy(), live.numpy()], -1)
        return {
            "r2": b.figure(lambda m, w: 1 - m / w, "fraction", m=missed, w=whole),
            "linear": b.figure(lambda m, w: 1 - m / w, "fraction", m=missed_linear, w=whole),
            "in_place": b.figure(lambda m, w: 1 - m / w, "fraction", m=missed_in_place, w=whole),
            "than_linear": b.figure(lambda m, w: m / w, "fraction", m=missed_linear - missed, w=whole),
            "rank": b.over_resamples(lambda i: spearman(pairs[i].reshape(-1, 2)), "correlation"),
        }


def _repeated(batch: Batch, n: int) -> Batch:
    def repeat(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.expand(n, *x.shape[1:])

    inputs = {k: v.expand(n, *v.shape[1:]) for k, v in batch.inputs.items()}
    return Batch(inputs, mask=repeat(batch.mask), targets=repeat(batch.targets))
