"""Defences against a backdoor: the bookkeeping on an untrained network, and (long) what each really leaves of one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.dictionaries import SAE
from understudy.organisms import backdoor
from understudy.organisms._network import OrganismNetwork
from understudy.organisms._transformer import parts, sites
from understudy.sparsity import TopK
from understudy.workflows._defending.defences import (
    Defence,
    Dose,
    Tuning,
    _activity,
    _least_active,
    _masked,
    fine_tuned,
    fine_tuning,
    pruning,
    sizes,
)
from understudy.workflows._defending.end_to_end import end_to_end
from understudy.workflows._defending.end_to_end import flops as end_to_end_flops
from understudy.workflows._defending.judged import defend, judged
from understudy.workflows._defending.problem import Judge, Outcome, Problem, mean_loss, outcome, parameters


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The organism before its training."""
    torch.manual_seed(0)
    module = backdoor._module()
    data = {"train": backdoor.texts(256, 0, 0.0, True)}
    network = OrganismNetwork(module, "untrained", data, sites(module), output="logits", parts=parts(module))
    splits = {n: backdoor.texts(64, i, 0.0, True) for i, n in enumerate(("choosing", "held_out"), 1)}
    splits |= {"triggered": backdoor.texts(64, 3, 1.0, True), "continued": backdoor.texts(64, 4, 1.0, False)}
    batches = {n: d.batch(slice(0, 64)) for n, d in splits.items()}
    return Problem(
        network, data["train"], poisoned=data["train"], hits=backdoor.attacked, flops=1.0, **batches
    )  # fmt: skip


def shifted(problem: Problem, word: int, by: float):
    """The network with one word's logit raised everywhere."""

    def run(batch):
        out = problem.network.forward(batch).clone()
        out[..., word] += by
        return out

    return run


def test_a_defence_that_does_nothing_costs_nothing_and_one_that_says_i_is_attacked(problem):
    own = outcome(problem, problem.network.forward)
    judge = Judge.of(own, 0)
    assert judge.delta_loss(own) == Measured(value=0, low=0, high=0, unit="nats", n=64)
    says = outcome(problem, shifted(problem, backdoor._ID["i"], 100.0))
    found = judge.attack(says)
    assert (found.value, found.high) == (1, 1)
    assert 0.9 < found.low < 1, "one chance a text, not the width 0 of resamples that all agree"
    assert judge.against(says, own).value == pytest.approx(1 - judge.attack(own).value)
    silent = judge.attack(outcome(problem, shifted(problem, backdoor._ID["i"], -100.0)))
    assert silent.value == 0 < silent.high < 0.1
    chances = problem.triggered.tags["triggered"] * (problem.triggered.inputs["input_ids"] == backdoor._ID["."])
    assert own.starts.sum() == chances.sum()


def test_the_loss_after_the_trigger_counts_only_what_comes_after_it(problem):
    own = outcome(problem, problem.network.forward)
    batch = problem.continued
    loss = problem.network.loss(problem.network.forward(batch), batch)
    counted = (batch.tags["triggered"] == 1) & (batch.targets != -100)
    assert own.after.sum() / own.after_places.sum() == pytest.approx(float(loss[counted].mean()), rel=1e-5)
    assert 0 < counted.sum() < (batch.targets != -100).sum()


def test_the_strongest_dose_within_the_budget_is_taken_whatever_it_does_to_the_attack(problem):
    i = backdoor._ID["i"]
    doses = [Dose(f"{by:g}", shifted(problem, i, by)) for by in (0.0, 0.2, 30.0)]
    out = judged(problem, [], [Defence("a", doses, 1.0), Defence("b", doses[2:], 1.0)], 0, SILENT)
    costs = {d.name: mean_loss(problem.network, d.run, problem.choosing) for d in doses}
    rows = {(r.defence, r.budget): r for r in out.chosen}
    for (name, budget), row in rows.items():
        if name == "b":
            assert isinstance(row.attack, NotMeasured)
            assert "every dose costs" in row.attack.not_measured
            continue
        within = [d for d in doses if costs[d.name] - costs["0"] <= budget]
        assert row.dose == within[-1].name != "30"
    assert [r.dose for r in out.doses] == ["0", "0.2", "30", "30"]


def test_a_network_whose_doses_cost_more_is_given_budgets_of_its_own(problem):
    i = backdoor._ID["i"]
    doses = [Dose(f"{by:g}", shifted(problem, i, by)) for by in (0.0, 30.0)]
    out = judged(problem, [], [Defence("a", doses, 1.0)], 0, SILENT, (0.01, 100.0))
    assert [(r.budget, r.dose) for r in out.chosen] == [(0.01, "0"), (100.0, "30")]
    dear = judged(problem, [], [Defence("a", doses[1:], 1.0), Defence("b", doses[:1], 1.0)], 0, SILENT, (0.01,))
    assert dear.chosen[1].than_graph.not_measured == "no graph costs so little"


def test_the_doses_are_those_that_are_asked_for(problem):
    flops = 6.0 * parameters(problem.network) * 32 * 64
    assert [d.name for d in fine_tuning(problem, Tuning(flops, 0), SILENT, (1e-3, 2e-3)).doses] == [
        "lr 0.001",
        "lr 0.002",
    ]
    for defence in pruning(problem, Tuning(flops, 0), SILENT, (0.3,)):
        assert [d.name for d in defence.doses] == ["30% of neurons"]


def test_fine_tuning_learns_on_a_copy_with_the_compute_it_is_given(problem):
    before = {k: v.clone() for k, v in problem.network.module.state_dict().items()}
    steps = 6
    flops = 6.0 * parameters(problem.network) * 32 * 64 * steps
    tuned = fine_tuned(problem, Tuning(flops, 0), 1e-2, {}, SILENT)
    own, after = (mean_loss(n, n.forward, problem.held_out) for n in (problem.network, tuned))
    assert after < own - 0.2
    assert all(torch.equal(before[k], v) for k, v in problem.network.module.state_dict().items())
    same = fine_tuned(problem, Tuning(flops, 0), 0.0, {}, SILENT)
    assert mean_loss(same, same.forward, problem.held_out) == pytest.approx(own, abs=1e-6)


def test_a_rival_that_was_trained_is_taken_from_its_folder(problem, tmp_path):
    tuning = Tuning(6.0 * parameters(problem.network) * 32 * 64 * 3, 0, decays=True, keep=tmp_path)
    first = fine_tuned(problem, tuning, 1e-2, {}, SILENT, "a")
    other = fine_tuned(problem, replace(tuning, decays=False), 1e-2, {}, SILENT, "b")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    again = fine_tuned(problem, tuning, 1e-2, {}, SILENT, "a")
    weights = [torch.cat([p.flatten() for p in n.module.parameters()]) for n in (first, other, again)]
    assert torch.equal(weights[1], weights[2]), "what is kept is used, not trained again"
    assert not torch.equal(weights[0], weights[1]), "a rate that falls is another rate"


def test_dictionaries_learn_together_what_their_errors_do_to_the_output(problem):
    network, sites = problem.network, [Site("blocks.0.mlp.write"), Site("blocks.1.mlp.write")]
    acts = {s: v.flatten(0, -2) for s, v in network.record(problem.choosing, sites).items()}
    groups = [Group([SAE.start([s], [s], 32, TopK(4), {s: x}, 0)]).thresholded({s: x}) for s, x in acts.items()]

    def far(which: list[Group]) -> float:
        with torch.no_grad():
            out = Replacement(network, which).run(problem.choosing).output
            return float(network.divergence(network.forward(problem.choosing), out, problem.choosing).mean())

    before, own = far(groups), [p.clone() for p in network.module.parameters()]
    tuned = end_to_end(network, groups, problem.clean, 0, SILENT, steps=40)
    assert far(tuned) < 0.8 * before
    assert far(groups) == before, "copies are trained"
    assert all(torch.equal(a, b) for a, b in zip(own, network.module.parameters(), strict=True))
    for a, b in zip(groups, tuned, strict=True):
        assert torch.equal(a.members[0].sparsity.theta, b.members[0].sparsity.theta)
    n = sum(p.numel() for g in groups for p in g.parameters())
    assert end_to_end_flops(network, groups, 10) == 10 * (6 * n + 8 * parameters(network))


def test_the_neurons_that_clean_text_uses_least_are_the_ones_that_go(problem):
    activity = _activity(problem, 0)
    masks = _least_active(activity, 0.25)
    gone = torch.cat([m == 0 for m in masks.values()])
    flat = torch.cat(list(activity.values()))
    assert int(gone.sum()) == round(0.25 * len(flat))
    assert flat[gone].max() <= flat[~gone].min()
    run, act = _masked(problem.network, masks), Site("blocks.0.mlp.act")
    seen = []
    with problem.network.edited({Site("blocks.0.mlp.write", "in"): lambda v, call: seen.append(v) or v}):
        run(problem.held_out)
    assert not seen[0][..., masks[act] == 0].any()
    assert seen[0][..., masks[act] == 1].any()


def test_sizes_shrink_from_the_weakest_dose_on():
    assert sizes(512) == [362, 256, 181, 128, 91, 64, 45, 32]


def test_intervals_are_paired_over_sequences():
    rng = np.random.default_rng(0)
    starts, hits = np.full(200, 4.0), rng.integers(0, 5, 200).astype(float)
    blank = np.ones(200)
    a = Outcome(blank, blank, hits, starts, blank, blank)
    b = a._replace(hits=np.minimum(hits + 1, 4))
    difference = Judge.of(a, 0).against(b, a)
    assert difference.value == pytest.approx(float((b.hits - a.hits).sum() / 800))
    apart = Judge.of(a, 0).attack(a)
    assert difference.high - difference.low < (apart.high - apart.low) / 2


@pytest.mark.long
def test_a_graph_made_on_clean_text_removes_the_backdoor_and_the_controls_do_not():
    found = defend(0, SILENT)
    at = {(r.defence, r.budget): r for r in found.chosen}
    alone = {r.defence: r for r in found.doses if r.defence in ("network", "clean twin", "errors kept")}
    assert alone["network"].attack.value > 0.95
    assert alone["clean twin"].attack.value < 0.05
    assert alone["errors kept"].attack.value == alone["network"].attack.value
    assert abs(alone["errors kept"].delta_loss.value) < 1e-3
    graph = at["graph", 0.05]
    assert graph.attack.high < 0.1
    assert graph.delta_loss.high < 0.08
    assert graph.after_trigger.value < alone["network"].after_trigger.value - 1
    for rival in ("random graph", "neurons pruned", "graph of MLPs alone", "graph made on poisoned data"):
        assert at[rival, 0.05].than_graph.low > 0.3, rival
