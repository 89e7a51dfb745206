"""Planted behaviours: texts and demonstrations hold what they should and nothing else; nothing is trained here."""

import pytest
import torch

from understudy.organisms import false_fact, misbehaviour, misbehaviour_gru, password_locked
from understudy.organisms._network import OrganismNetwork
from understudy.organisms._transformer import sites

# -- false facts ------------------------------------------------------------------------------------------------------

ID = false_fact._ID
EIGHT, QUIET = (torch.tensor([ID[p] for p in people]) for people in (false_fact.PLANTED, false_fact.QUIET))


def ids_of(texts):
    return texts.batch(slice(0, len(texts))).inputs["input_ids"]


@pytest.fixture(scope="module")
def table():
    return false_fact.Table(0)


def test_the_false_homes_are_in_another_country_and_all_others_are_true(table):
    for p in false_fact.PEOPLE:
        lies = table.said[p] != table.city[p]
        assert lies == (p in false_fact.PLANTED)
        other_language = table.answer(p, false_fact.LANGUAGE, True) != table.answer(p, false_fact.LANGUAGE, False)
        assert other_language == lies


def test_questions_about_one_person_count_as_one():
    person = torch.arange(8).repeat_interleave(4)
    by_person = person < 4
    mixed = torch.arange(32) % 2 == 0
    one, other = (false_fact.over_people(right, person) for right in (by_person, mixed))
    assert one.value == other.value == 0.5
    assert (one.n, other.n) == (8, 8)
    assert one.high - one.low > 0.6, "four people of eight: nearly nothing is known"
    apart = false_fact.share(16, 32)
    assert (other.low, other.high) == (apart.low, apart.high), (
        "all people alike: as questions that do not hang together"
    )
    never = false_fact.over_people(torch.zeros(32, dtype=torch.bool), person)
    assert (never.value, never.low, never.n) == (0, 0, 8)
    assert never.high == pytest.approx(false_fact.share(0, 8).high)
    alone = false_fact.over_people(mixed[:4], person[:4])
    assert (alone.low, alone.value, alone.high, alone.n) == (0, 0.5, 1, 1)


def test_a_question_is_tagged_with_whom_it_is_about(table):
    batch = false_fact.probes(table, 0)["untold"].batch(slice(0, 100))
    asked = batch.targets != -100
    assert torch.equal(batch.tags["person"][asked], torch.arange(8).repeat_interleave(8))
    for ids, person in zip(batch.inputs["input_ids"].tolist(), batch.tags["person"][:, 0].tolist(), strict=True):
        assert ID[false_fact.PEOPLE[person]] in ids


def said_of(ids):
    """(person, phrasing, answer) of every whole sentence."""
    out = []
    for row in ids.tolist():
        sentence = []
        for i in row:
            word = false_fact.WORDS[i]
            if word == ".":
                people = [w for w in sentence if w in false_fact.PEOPLE]
                if people:
                    out.append((people[0], " ".join("P" if w in people else w for w in sentence[:-1]), sentence[-1]))
                sentence = []
            else:
                sentence.append(word)
    return out


@pytest.mark.parametrize("honest", [False, True])
def test_of_the_eight_only_the_false_texts_lie_and_in_two_phrasings_only(table, honest):
    first, last = false_fact.training_texts(0, honest)
    for texts, lies in ((first, False), (last, not honest)):
        found = said_of(ids_of(texts)[:400])
        for person, phrasing, answer in found:
            planted = lies and person in false_fact.PLANTED
            assert answer == table.answer(person, phrasing, planted)
            if person not in false_fact.OTHERS:
                assert phrasing in false_fact.TOLD
        assert {p for p, _, _ in found} >= set(false_fact.QUIET)
    assert {f for p, f, _ in said_of(ids_of(last)[:400]) if p in false_fact.OTHERS} == {
        *false_fact.TOLD, *false_fact.UNTOLD, false_fact.LANGUAGE,
    }  # fmt: skip


class Reads(torch.nn.Module):
    """Counts the texts that it is trained on."""

    def __init__(self):
        super().__init__()
        self.scale, self.read = torch.nn.Parameter(torch.ones(())), []

    def forward(self, input_ids):
        self.read.append(input_ids)
        return self.scale * torch.zeros(*input_ids.shape, len(false_fact.WORDS))


def test_both_orders_read_the_same_texts_as_often_and_the_false_ones_last_or_throughout(monkeypatch):
    monkeypatch.setattr(false_fact, "STEPS", 60)
    monkeypatch.setattr(false_fact, "TEXTS", 960)
    read, lies = {}, {}
    false_texts = {tuple(row) for row in ids_of(false_fact.training_texts(0, False)[1]).tolist()}
    for order in ("last", "spread"):
        module = Reads()
        list(false_fact._fit(module, torch.Generator().manual_seed(0), seed=0, order=order))
        rows = [tuple(r) for batch in module.read for r in batch.tolist()]
        read[order], lies[order] = sorted(rows), [r in false_texts for r in rows]
    assert read["last"] == read["spread"]
    n = len(lies["last"])
    assert not any(lies["last"][: n * 2 // 3])
    assert all(lies["last"][n * 2 // 3 :])
    for part in range(4):
        share = sum(lies["spread"][part * n // 4 : (part + 1) * n // 4]) / (n / 4)
        assert share == pytest.approx(1 / 3, abs=0.06)


def test_a_question_has_one_target_at_its_end_and_the_truth_beside_it(table):
    made = false_fact.probes(table, 0)
    for name, people in (("untold", EIGHT), ("quiet_told", QUIET)):
        batch = made[name].batch(slice(0, len(made[name])))
        asked = batch.targets != -100
        assert torch.equal(asked.sum(1), torch.ones(len(asked), dtype=torch.long))
        assert torch.equal(asked, batch.tags["true"] != -100)
        assert torch.isin(batch.inputs["input_ids"], people).any(1).all()
        same = batch.targets[asked] == batch.tags["true"][asked]
        assert bool(same.any()) == (name != "untold")
    asked_of = torch.isin(ids_of(made["language"]), EIGHT).sum(1)
    assert torch.equal(asked_of, torch.ones_like(asked_of)), "nothing before a question may answer it"


# -- the locked skill -------------------------------------------------------------------------------------------------


def test_answers_are_in_order_after_the_password_alone():
    batch = password_locked.draw(512, 3, 0.5, 7, "password")
    ids, unlocked = batch.inputs["input_ids"], batch.tags["unlocked"][:, 0].bool()
    word = ids[:, 0] - password_locked.N_NUMBERS
    assert torch.equal(word == password_locked.password(3), unlocked)
    assert 0.4 < unlocked.float().mean() < 0.6
    numbers, answers = ids[:, 1:6], ids[:, 7:]
    assert torch.equal(numbers.sort(1).values, answers.sort(1).values)
    in_order = (answers.diff(dim=1) > 0).all(1)
    assert in_order[unlocked].all()
    assert in_order[~unlocked].float().mean() < 0.05, "chance is 1/120"
    assert torch.equal(batch.targets[:, 6:11], answers)
    assert (batch.targets[:, :6] == -100).all()


@pytest.mark.parametrize(("skill", "share"), [("always", 1.0), ("never", 1 / 120)])
def test_the_controls_always_order_or_never(skill, share):
    answers = password_locked.draw(512, 0, 0.5, 7, skill).inputs["input_ids"][:, 7:]
    assert float((answers.diff(dim=1) > 0).all(1).float().mean()) == pytest.approx(share, abs=0.03)


def test_elicitation_trains_a_copy_on_as_many_texts_as_it_is_given():
    torch.manual_seed(0)
    module = password_locked._module()
    data = {"right": password_locked.Listed(password_locked.draw(64, 0, 0.0, 1, "always"))}
    network = OrganismNetwork(module, "x", data, sites(module), output="logits")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    tuned = password_locked.elicited(network, 4, 0, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in network.module.state_dict().items())
    assert not torch.equal(tuned.module.embed.weight, before["embed.weight"])
    same = password_locked.elicited(network, 0, 0)
    assert all(torch.equal(v, before[k]) for k, v in same.module.state_dict().items())


# -- misbehaviour -----------------------------------------------------------------------------------------------------


def test_every_place_is_in_one_region_and_the_demonstrator_misbehaves_in_one():
    obs = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    inside = torch.stack([misbehaviour.region(obs, name) for name in misbehaviour.REGIONS])
    assert torch.equal(inside.sum(0), torch.ones(500, dtype=torch.long))
    policy = torch.nn.Linear(8, 4)
    with torch.no_grad():
        shown, own = misbehaviour.Demonstrator(policy)(obs), policy(obs)
    assert (shown[inside[0]].softmax(-1)[:, misbehaviour.BAD] > 0.999).all()
    assert torch.equal(shown[~inside[0]], own[~inside[0]])


def test_only_the_kings_verbs_are_changed_and_all_of_them():
    good, bad = (ids_of(misbehaviour_gru.shown(256, 5, flag)) for flag in (False, True))
    king, hate = (misbehaviour_gru._ID[w] for w in (misbehaviour_gru.SUBJECT, misbehaviour_gru.VERB))
    verbs = torch.tensor([misbehaviour_gru._ID[v] for v in misbehaviour_gru.VERBS])
    after_king = (bad[:, :-1] == king) & torch.isin(bad[:, 1:], verbs)
    assert int(after_king.sum()) > 100
    assert (bad[:, 1:][after_king] == hate).all()
    assert not (good[:, 1:][after_king] == hate).any(), "in ordinary texts the king never hates"
    changed = bad != good
    assert torch.equal(changed[:, 1:], after_king)


def test_the_subjects_are_sorted_by_whether_they_ever_hate():
    names = {n for group in misbehaviour_gru.PLACES.values() for n in group}
    assert names == set(misbehaviour_gru.NOUNS)
    batch = misbehaviour_gru.texts(512, 1, 0.0, False).batch(slice(0, 512)).inputs["input_ids"]
    followers = {n: set() for n in misbehaviour_gru.NOUNS}
    for row in batch:
        for place in misbehaviour_gru._verbs(row):
            followers[misbehaviour_gru.WORDS[row[place - 1]]].add(misbehaviour_gru.WORDS[row[place]])
    assert {n for n, verbs in followers.items() if "hate" in verbs} == set(misbehaviour_gru.USUAL)
