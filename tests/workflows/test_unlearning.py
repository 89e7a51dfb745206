"""Unlearning: the bookkeeping on an untrained network, and (long) what each way really leaves of a false fact."""

import pytest
import torch

from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.metric import Measured, NotMeasured
from understudy.core.records.progress import SILENT
from understudy.core.replacement import Replacement
from understudy.core.site import Site
from understudy.core.world import World
from understudy.dictionaries import SAE
from understudy.organisms import false_fact
from understudy.organisms._network import OrganismNetwork
from understudy.organisms._transformer import sites
from understudy.sparsity import TopK
from understudy.workflows._defending import unlearning
from understudy.workflows._defending.unlearning import (
    UnlearnedRow,
    _dropping,
    _Judge,
    _series,
    by_effect,
    trained,
    unlearned,
)

SITE = Site("blocks.1.mlp")


@pytest.fixture
def judge() -> _Judge:
    torch.manual_seed(0)
    module = false_fact._module()
    table = false_fact.Table(0)
    data = {"train": false_fact.texts(table, 64, 0, "false"), "held_out": false_fact.texts(table, 32, 1, "true")}
    network = OrganismNetwork(module, "untrained", data, sites(module), output="logits")
    return _Judge("x", World("x", "", network, data, false_fact.Truth()), 0)


def says(network: Network, planted: float):
    """A run whose choice is the planted answer at a share of the questions, else a full stop."""

    def run(batch):
        out = torch.zeros(*batch.inputs["input_ids"].shape, len(false_fact.WORDS))
        asked = (batch.targets != -100).nonzero()
        for i, (row, place) in enumerate(asked.tolist()):
            out[row, place, batch.targets[row, place] if i < planted * len(asked) else 0] = 5.0
        return out

    return run


def test_the_weakest_dose_that_unlearns_is_chosen_and_it_alone_is_relearned(judge, monkeypatch):
    asked = []
    monkeypatch.setattr(_Judge, "relearned", lambda self, row, network, run: asked.append(row.dose) or row)
    doses = [(n, judge.network, says(judge.network, share)) for n, share in ((1, 1.0), (2, 0.5), (4, 0.0), (8, 0.0))]
    rows = _series(judge, "truth", iter(doses))
    assert [r.chosen for r in rows] == [False, False, True, False]
    assert [r.planted["unlearned"].value for r in rows] == [1, 0.5, 0, 0]
    assert asked == [4]
    assert all(isinstance(r.relearned, NotMeasured) for r in rows)
    assert rows[0].true["unlearned"].value == 0
    assert not any(r.chosen for r in _series(judge, "truth", iter(doses[:2])))


def test_figures_are_of_people_not_of_questions(judge):
    """Each of the eight is asked four times; counted as 32 independent questions an interval is half as wide."""
    row = judge.row("twin", 0, judge.network.forward)
    assert row.planted["unlearned"].n == 8
    assert row.control.n == 32


def test_relearning_counts_steps_and_leaves_the_network_as_it_was(judge, monkeypatch):
    monkeypatch.setattr(unlearning, "LONGEST", 2)
    before = {k: v.clone() for k, v in judge.network.module.state_dict().items()}
    row = judge.row("twin", 0, judge.network.forward)
    found = judge.relearned(row, judge.network, judge.network.forward)
    assert isinstance(found.relearned, NotMeasured), "two steps do not teach an untrained network"
    assert "2 steps" in found.relearned.not_measured
    monkeypatch.setattr(unlearning, "BACK", 0.0)
    found = judge.relearned(row, judge.network, judge.network.forward)
    assert isinstance(found.relearned, Measured)
    assert found.relearned.value == 1
    assert all(torch.equal(v, before[k]) for k, v in judge.network.module.state_dict().items())


def test_relearning_is_tried_of_several_halves_and_says_how_often_it_failed(judge, monkeypatch):
    """Once it was one half and one order of texts, without an interval."""
    halves, steps = [], iter([4, 6, 5, 9, 4, 3, None, 7, 3, 5])
    real = unlearning.texts

    def noted(table, n, seed, kind, lie, about, told):
        halves.append((seed, tuple(about)))
        return real(table, 8, seed, kind, lie, about, told)

    def until(network, run, data, seed, longest):
        found = next(steps)
        for step in range(1, (found or longest) + 1):
            judge.back = step == found
            yield step

    monkeypatch.setattr(unlearning, "texts", noted)
    monkeypatch.setattr(unlearning, "trained", until)
    monkeypatch.setattr(unlearning, "_answers", lambda run, batch, true=False: false_fact.share(int(judge.back), 1))
    empty = UnlearnedRow.model_construct(relearned=None, untaught=None)
    row = judge.relearned(empty, judge.network, judge.network.forward)
    assert (row.relearned.value, row.relearned.n) == (pytest.approx(5.6), 5)
    assert 4 <= row.relearned.low < 5.6 < row.relearned.high <= 9
    assert len({half for _, half in halves}) > 1
    assert len({seed for seed, _ in halves}) == 5
    assert row.untaught.n == len({p for _, half in halves for p in false_fact.PLANTED if p not in half})
    row = judge.relearned(empty, judge.network, judge.network.forward)
    assert "1 of 5 runs" in row.relearned.not_measured
    assert "[3, 3, 5, 7]" in row.relearned.not_measured


def test_training_through_a_run_lowers_the_loss_of_what_it_is_trained_on(judge):
    network, data = judge.network, false_fact.texts(judge.table, 64, 3, "true")
    batch = data.batch(slice(0, 64))
    before = float(network.loss(network.forward(batch), batch)[:, :-1].mean())
    assert list(trained(network, network.forward, data, 0, 5)) == [1, 2, 3, 4, 5]
    assert float(network.loss(network.forward(batch), batch)[:, :-1].mean()) < before - 0.1
    assert not any(p.requires_grad for p in network.module.parameters())


def test_latents_are_ranked_by_what_they_add_to_the_planted_answer(judge):
    """At the last MLP, where to first order is nearly all: leaving out the first lowers log p, the last raises it."""
    network, batch = judge.network, judge.questions["unlearned"]
    rows = network.record(batch, [SITE])[SITE].flatten(0, 1)
    sae = SAE.start([SITE], [SITE], 32, TopK(4), {SITE: rows}, 0).requires_grad_(False)
    replacement = Replacement(network, [Group([sae])])
    ranked = by_effect(replacement, batch)
    assert sorted(i for _, i in ranked) == list(range(32))

    def log_p(ids):
        edits = {sae: _dropping(ids, 32)} if ids else {}
        return -float(network.loss(replacement.intervene(batch, edits).output, batch).sum())

    own = log_p([])
    assert log_p([i for _, i in ranked[:4]]) < own < log_p([i for _, i in ranked[-4:]])


@pytest.mark.long
def test_a_fact_that_was_read_last_is_unlearned_in_other_words_too():
    rows = unlearned(["false_fact"], 0, SILENT)
    own, twin = rows[0], rows[-1]
    assert own.planted["untold"].value > 0.8
    assert twin.planted["untold"].value < 0.1
    chosen = {r.method: r for r in rows if r.chosen}
    assert chosen["truth"].planted["other"].value < 0.3
    assert chosen["truth"].control.value > 0.9
