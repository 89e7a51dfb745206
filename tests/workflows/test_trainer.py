import hashlib

import pytest
import torch

from tests.dictionaries.planted import SITE, rows
from understudy.core.dictionary import Group
from understudy.core.objective import TrainingState
from understudy.core.records.errors import BadWeights, NonFiniteLoss
from understudy.core.site import Site
from understudy.dictionaries import SAE, CLTLayer, Transcoder, clt_group
from understudy.objectives import LocalFVU
from understudy.sparsity import BatchTopK, JumpReLU, TopK
from understudy.workflows._training.build import KINDS
from understudy.workflows._training.resample import Resample
from understudy.workflows._training.rules import TRAINED, rule_maker
from understudy.workflows._training.trainer import Schedule, Trainer
from understudy.workflows.train import TrainConfig

OUT, LATER = Site("out"), Site("later")
SITES = (SITE, OUT, LATER)
BATCH = 64


def acts(seed: int, n: int = BATCH) -> dict:
    x = rows(n, seed)
    return {SITE: x, OUT: 2 * x.relu() - 1, LATER: x.flip(-1).square()}


def make(steps: int = 40, dead_after: int = 3 * BATCH, ema: float = 0.9, lr: float = 1e-2) -> Trainer:
    """An SAE, a transcoder and a two-layer CLT, from one seed."""
    sample = acts(0, 512)
    layers = [
        CLTLayer.start([SITE], [OUT, LATER], 20, TopK(3), sample, 2),
        CLTLayer.start([OUT], [LATER], 20, TopK(3), sample, 3),
    ]
    groups = [
        Group([SAE.start([SITE], [SITE], 48, BatchTopK(4), sample, 0)]),
        Group([Transcoder.start([SITE], [OUT], 48, TopK(4), sample, 1)]),
        clt_group(layers, sample),
    ]
    with torch.no_grad():
        groups[1].members[0].b_enc[:8] = -2  # never among the k largest
    states = [TrainingState({s: float(sample[s].var(0, correction=0).sum()) for s in g.writes}) for g in groups]
    return Trainer(groups, LocalFVU(k_aux=8), states, Schedule(lr), steps * BATCH, dead_after, ema)


def steps(trainer: Trainer, first: int, last: int) -> list:
    return [trainer.train_step(acts(i)) for i in range(first, last)]


def digest(trainer: Trainer) -> dict[str, str]:
    """Of everything a step depends on."""
    tensors = {f"{kind}.{k}": v for kind in ("weights", "optimiser") for k, v in trainer._tensors(kind).items()}
    out = {k: hashlib.sha256(v.detach().contiguous().numpy().tobytes()).hexdigest() for k, v in tensors.items()}
    return out | {"step": str(trainer.step), "places": str(trainer.places)}


@pytest.mark.parametrize("at", [1, 7])
def test_a_saved_run_continues_bit_for_bit(at, tmp_path):
    straight = make(dead_after=BATCH)
    steps(straight, 0, at)
    straight.save(tmp_path, {"chunk": 3, "batch": 5})
    resumed = make(dead_after=BATCH)
    steps(resumed, 20, 23)  # what is in it must not matter
    for state in resumed.states:
        state.variance = dict.fromkeys(state.variance, 1.0)
    position = resumed.load(tmp_path)
    assert (position["chunk"], position["batch"], position["places"]) == (3, 5, at * BATCH)
    assert digest(resumed) == digest(straight)
    assert [s.variance for s in resumed.states] == [s.variance for s in straight.states]
    for i in range(at, at + 3):
        (one,), (other,) = steps(straight, i, i + 1), steps(resumed, i, i + 1)
        assert digest(resumed) == digest(straight)
        assert [{k: v.item() for k, v in t.items()} for t in one] == [
            {k: v.item() for k, v in t.items()} for t in other
        ]
    assert "aux" in one[1], "dead latents and their counters must take part"
    for trainer in (straight, resumed):
        trainer.use_averages()
    assert digest(resumed) == digest(straight)


def test_a_fresh_trainer_loads_as_a_used_one(tmp_path):
    straight = make()
    steps(straight, 0, 5)
    straight.save(tmp_path, {})
    fresh = make()
    fresh.load(tmp_path)
    steps(fresh, 5, 8)
    steps(straight, 5, 8)
    assert digest(fresh) == digest(straight)


def test_the_digest_sees_a_changed_bit_anywhere(tmp_path):
    trainer = make()
    steps(trainer, 0, 2)
    before = digest(trainer)
    for kind in ("weights", "optimiser"):
        for name, tensor in trainer._tensors(kind).items():
            kept = tensor.data.clone()
            tensor.data.view(-1)[0] += 1
            assert {k for k, v in digest(trainer).items() if v != before[k]} == {f"{kind}.{name}"}
            tensor.data.copy_(kept)


def test_a_checkpoint_of_other_dictionaries_is_refused(tmp_path):
    trainer = make()
    steps(trainer, 0, 1)
    trainer.save(tmp_path, {})
    other = make()
    other.groups = [*other.groups, other.groups[0]]
    with pytest.raises(BadWeights, match=r"weights.safetensors lacks 3\.members.*belongs to other dictionaries"):
        other.load(tmp_path)
    other = make()
    other.groups[0].members[0].b_enc = torch.nn.Parameter(torch.zeros(1))  # another width
    before = digest(other)
    with pytest.raises(BadWeights, match=r"lacks 0\.members\.0\.b_enc as this run has it"):
        other.load(tmp_path)
    assert digest(other) == before


def test_averages_are_bias_corrected_means_of_the_weights():
    trainer, decay = make(ema=0.5), 0.5
    W = trainer.groups[1].members[0].W_dec
    seen = []
    for i in range(3):
        steps(trainer, i, i + 1)
        seen.append(W.detach().clone())
    expected = sum(v * decay ** (2 - i) for i, v in enumerate(seen)) / (1 + decay + decay**2)
    trainer.use_averages()
    torch.testing.assert_close(W.detach(), expected)


def test_without_averaging_the_last_weights_stay():
    trainer = make(ema=0.0)
    steps(trainer, 0, 2)
    before = digest(trainer)
    trainer.use_averages()
    assert digest(trainer) == before


def test_silence_is_counted_in_places_since_a_latent_last_fired():
    trainer = make()
    sae = trainer.groups[0].members[0]
    expected = torch.zeros(48, dtype=torch.long)
    for i in range(4):
        fired = sae.encode({SITE: acts(i)[SITE]}).z.fires() > 0
        expected = torch.where(fired, 0, expected + BATCH)
        steps(trainer, i, i + 1)
        assert torch.equal(trainer.silent[0][0], expected)
    share = float((expected >= trainer.dead_after).double().mean())
    assert trainer.dead_share()[0] == pytest.approx(share)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_any_weight_is_touched(bad):
    trainer = make()
    steps(trainer, 0, 3)
    before = digest(trainer)
    x = acts(3)
    x[LATER][0, 0] = bad  # read by the last group only
    with pytest.raises(NonFiniteLoss, match=r"the loss of out:out\+later:out became (nan|inf) at step 3 \(lr "):
        trainer.train_step(x)
    assert digest(trainer) == before
    steps(trainer, 3, 4)


def test_the_last_batch_may_be_a_single_place():
    trainer = make(dead_after=1)
    steps(trainer, 0, 2)
    trainer.train_step(acts(2, n=1))
    assert all(bool(torch.isfinite(p).all()) for g in trainer.groups for p in g.parameters())
    assert trainer.places == 2 * BATCH + 1


def test_training_lowers_every_loss():
    trainer = make(steps=60)
    found = steps(trainer, 0, 60)
    for first, last in zip(found[0], found[-1]):
        assert last["fvu"] < 0.7 * first["fvu"]


def test_terms_say_l0():
    (terms,) = steps(make(), 0, 1)
    assert terms[0]["l0"] == pytest.approx(4, abs=0.1)
    assert terms[2]["l0"] <= 6


def test_the_schedule_rises_holds_and_falls_to_0():
    schedule = Schedule(2.0, warmup=0.1, decay=0.5)
    assert [schedule(x) for x in (0.05, 0.1, 0.3, 0.5, 0.75, 1.0, 1.1)] == pytest.approx([1, 2, 2, 2, 1, 0, 0])
    flat = Schedule(2.0, warmup=0, decay=0)
    assert [flat(x) for x in (0, 0.5, 1)] == [2, 2, 2]


# -- every kind and every rule ----------------------------------------------------------------------------------------


def one(kind: str, rule: str) -> Trainer:
    """A trainer of one group that revives latents while it goes, by the rule's and the kind's own starting point."""
    sample = acts(0, 512)
    reads, writes = {"site": ([SITE], [SITE]), "sites": ([SITE, OUT], [SITE, OUT]), "part": ([SITE], [OUT]),
                     "parts": ([SITE], [OUT, LATER])}[KINDS[kind].spans]  # fmt: skip
    config = TrainConfig(kind=kind, sparsity=rule, n_latents=48, k=4)
    member = KINDS[kind].start(reads, writes, 48, rule_maker(config)(32, 32), sample, 0)
    with torch.no_grad():
        member.b_enc[:8] = -2
    group = KINDS[kind].group([member], sample)
    state = TrainingState({s: float(sample[s].var(0, correction=0).sum()) for s in group.writes})
    return Trainer(
        [group], LocalFVU(k_aux=8), [state], Schedule(1e-2), 40 * BATCH, 3 * BATCH, 0.9, Resample(5 * BATCH, seed=1)
    )


# Components start from a network's weights: `test_components.py` resumes them.
CASES = [("sae", rule) for rule in TRAINED if rule != "causal_importance"]
CASES += [(kind, "jumprelu") for kind, made in KINDS.items() if kind != "sae" and made.spans != "linears"]


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_every_kind_and_rule_continues_bit_for_bit(kind, rule, tmp_path):
    """2N steps are N, a save, a load into another trainer and N more; what rules learn and their optimiser included."""
    straight = one(kind, rule)
    steps(straight, 0, 7)
    straight.save(tmp_path, {})
    resumed = one(kind, rule)
    steps(resumed, 30, 31)
    resumed.load(tmp_path)
    steps(straight, 7, 14)
    steps(resumed, 7, 14)
    assert digest(resumed) == digest(straight)
    learned = [n for n, _ in straight.groups[0].members[0].sparsity.named_parameters()]
    fresh = one(kind, rule).groups[0].members[0].sparsity
    for name in learned:
        assert not torch.equal(getattr(fresh, name), getattr(straight.groups[0].members[0].sparsity, name)), name
    assert len(straight._tensors("optimiser")) >= 3 * len(list(straight.groups[0].parameters()))


def test_a_rule_says_how_fast_its_own_parameters_learn():
    class Slow(JumpReLU):
        lr_factor = 0.25

    moved = {}
    for cls in (JumpReLU, Slow):
        rule = cls.start(n_latents=48, d_in=32, d_out=32, k=4)
        before = rule.theta.detach().clone()
        sae = SAE.start([SITE], [SITE], 48, rule, acts(0, 512), 0)
        state = TrainingState({SITE: 30.0})
        trainer = Trainer([Group([sae])], LocalFVU(), [state], Schedule(1e-2, 0, 0), 40 * BATCH, 10**9, 0.0)
        W = sae.W_enc.detach().clone()
        steps(trainer, 0, 1)
        moved[cls] = ((rule.theta - before).abs().max().item(), (sae.W_enc - W).abs().max().item())
    assert moved[JumpReLU][0] == pytest.approx(0.01, rel=1e-3)  # Adam's first step is the learning rate
    assert moved[Slow][0] == pytest.approx(0.0025, rel=1e-3)
    assert moved[Slow][1] == pytest.approx(moved[JumpReLU][1])


# -- resampling -------------------------------------------------------------------------------------------------------


def test_resampling_restarts_the_dead_alone_at_inputs_and_forgets_their_momentum():
    trainer = one("sae", "gated")
    trainer.resample = None
    steps(trainer, 0, 4)
    member, x = trainer.groups[0].members[0], acts(9)
    silent = trainer.silent[0][0]
    silent.zero_()
    silent[:5] = trainer.dead_after
    dead = torch.arange(48) < 5
    before = {k: v.clone() for k, v in member.state_dict().items()}
    assert Resample(1, seed=0)(trainer, x) == [5]
    after = member.state_dict()
    for name in ("W_enc", "b_enc", "W_dec", "sparsity.r_mag", "sparsity.b_mag"):
        assert torch.equal(after[name][~dead], before[name][~dead]), name
    inputs = torch.nn.functional.normalize(member.pre(x).x, dim=-1)
    cosine = torch.nn.functional.normalize(member.W_enc[dead], dim=-1) @ inputs.T
    torch.testing.assert_close(cosine.max(-1).values, torch.ones(5))
    torch.testing.assert_close(
        member.W_enc[dead].norm(dim=-1), 0.5 * before["W_enc"][~dead].norm(dim=-1).mean().expand(5)
    )
    torch.testing.assert_close(member.W_dec.norm(dim=-1), torch.ones(48))
    assert not member.b_enc[dead].any()
    assert not silent.any()
    for name in ("W_enc", "b_enc", "W_dec"):
        entry = trainer.optimisers[0].state[getattr(member, name)]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not entry[moment][dead].any()
            assert entry[moment][~dead].any()


def test_it_prefers_places_that_are_rebuilt_badly():
    trainer, x = one("sae", "topk"), acts(9)
    x[SITE][7] *= 30  # one place with nearly all the loss
    trainer.silent[0][0][:20] = trainer.dead_after
    Resample(1, seed=0)(trainer, x)
    member = trainer.groups[0].members[0]
    inputs = torch.nn.functional.normalize(member.pre(x).x, dim=-1)
    chosen = (torch.nn.functional.normalize(member.W_enc[:20], dim=-1) @ inputs.T).argmax(-1)
    assert int((chosen == 7).sum()) >= 19


def test_it_is_due_at_every_multiple_until_the_rate_falls():
    resample = Resample(100, seed=0)
    due = [n for n in range(64, 1001, 64) if resample.due(n - 64, n, 1000)]
    assert due == [128, 256, 320, 448, 512, 640]  # the first step at or behind 100, 200, ... 600


def test_without_dead_latents_or_errors_nothing_changes():
    trainer = one("sae", "topk")
    steps(trainer, 0, 1)
    trainer.silent[0][0].zero_()
    before = digest(trainer)
    assert Resample(1, seed=0)(trainer, acts(3)) == [0]
    assert digest(trainer) == before
