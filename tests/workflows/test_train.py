"""Training through the public function: every kind at every site it can stand, and input that does not fit."""

import pytest
import torch

from understudy.core.dictionary import DictionarySpec, Group
from understudy.core.records.artifact import RunFolder
from understudy.core.records.errors import (
    AcausalReplacement,
    BadActivations,
    BadData,
    BadFolder,
    BadInput,
    BadWeights,
    NonFiniteLoss,
    UnderstudyError,
    UnknownName,
)
from understudy.core.replacement import MEASURED_ERRORS
from understudy.core.site import Site
from understudy.dictionaries import CLTLayer
from understudy.networks import open_network
from understudy.sparsity import Threshold
from understudy.workflows import train as training
from understudy.workflows._runs import from_spec, load_groups, save_groups, save_weights
from understudy.workflows._training import finish as finishing
from understudy.workflows._training import searching
from understudy.workflows._training.harvest import Harvest
from understudy.workflows._training.searching import search_of
from understudy.workflows.evaluate import open_run
from understudy.workflows.train import TrainConfig, train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:multiprocessing")


@pytest.mark.parametrize(
    ("kind", "sites", "groups", "writes"),
    [
        ("sae", "resid.1,mlp_out.2", 2, 1),
        ("transcoder", "mlp", 4, 1),
        ("transcoder", "attn.1", 1, 1),
        ("skip_transcoder", "mlp.1", 1, 1),
        ("crosscoder", "resid.*", 1, 4),
        ("clt", "mlp", 1, 4),
    ],
)
def test_every_kind_trains_and_opens_again(small, kind, sites, groups, writes):
    made = train(TrainConfig(**{**small, "kind": kind, "sites": sites}))
    assert len(made.groups) == groups
    assert all(len(g.writes) == writes for g in made.groups)
    run = open_run(small["out"])
    for mine, saved in zip(made.groups, run.groups, strict=True):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, saved.state_dict()[name])
    lines = made.folder.metrics()
    first, last = (sum(t["fvu"] for t in x["groups"].values()) for x in (lines[0], lines[-1]))
    assert last < first
    assert all(m.sparsity.is_thresholded for g in run.groups for m in g.members)
    if kind != "crosscoder":
        batch = run.network.example()
        recording = run.replacement.record(batch)
        out = run.replacement.run(batch, MEASURED_ERRORS, recording).output.logits
        torch.testing.assert_close(out, run.network(batch).logits, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(small, tmp_path):
    runs = [train(TrainConfig(**{**small, "out": tmp_path / str(i), "seed": s})) for i, s in enumerate((0, 0, 1))]
    a, b, c = (r.groups[0].members[0].W_enc for r in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


SHORT = {"tokens": 8000, "batch": 128, "sites": "mlp.1"}


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": "jumprelu"},
        {"sparsity": "gated", "kind": "clt", "l1": 0.1},
        {"sparsity": "relu", "kind": "skip_transcoder", "l1": 0.1, "dead": "resample"},
        {"sparsity": "groupmax", "objective": "kl"},
        {"sparsity": "batch_topk", "kind": "sae", "sites": "resid.1", "objective": "matryoshka"},
        {"sparsity": "multi_topk", "objective": "loss", "local_weight": 1.0, "dead": "none"},
    ],
    ids=lambda change: " ".join(map(str, change.values())),
)
def test_rules_objectives_and_cures_train_together_and_end_in_thresholds(small, change):
    """No weight of one run is like another's, and all of them lower what they set out to lower."""
    made = train(TrainConfig(**{**small, **SHORT, **change}))
    lines = made.folder.metrics()
    for name in lines[0]["groups"]:
        first, last = (line["groups"][name] for line in (lines[0], lines[-1]))
        aim = change.get("objective", "fvu") if change.get("objective") in ("kl", "loss") else "fvu"
        assert last[aim] < first[aim]
    for mine, saved in zip(made.groups, open_run(small["out"]).groups, strict=True):
        assert all(m.sparsity.name == "threshold" for m in saved.members)
        for name, value in mine.state_dict().items():
            assert torch.equal(value, saved.state_dict()[name])


def test_objectives_change_what_is_learned(small, tmp_path):
    found = []
    for i, objective in enumerate(("local", "matryoshka", "kl")):
        values = {**small, **SHORT, "objective": objective, "out": tmp_path / str(i), "tokens": 1000}
        found.append(train(TrainConfig(**values)).groups[0].members[0].W_enc)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("objective", ["local", "kl"])
def test_sequences_are_served_from_where_a_run_was_stopped(small, tmp_path, objective):
    """End to end, too: stopped and resumed ends in the weights of a run that went through."""
    values = {**small, **SHORT, "objective": objective, "checkpoint_s": 0.0, "sparsity": "jumprelu"}
    whole = train(TrainConfig(**{**values, "out": tmp_path / "whole"}))
    train(TrainConfig(**values))
    folder = RunFolder(small["out"])
    (small["out"] / "groups.json").unlink()
    folder.drop_checkpoint(folder.checkpoints()[-1])
    resumed = train(TrainConfig(out=small["out"], resume=True))
    for a, b in zip(whole.groups, resumed.groups, strict=True):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert whole.folder.metrics() == resumed.folder.metrics()


MINE = """
from understudy.dictionaries import Transcoder
from understudy.sparsity import TopK

class Mine(Transcoder):
    kind = "mine"

class Rule(TopK):
    name = "mine"

    @classmethod
    def start(cls, n_latents, k):
        return cls(k)
"""


def test_your_own_class_trains_by_its_path_and_is_opened_only_when_asked(small, tmp_path, monkeypatch):
    (tmp_path / "my_lab_of_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"kind": "my_lab_of_tests.Mine", "sparsity": "my_lab_of_tests.Rule"}
    made = train(TrainConfig(**{**small, **SHORT, "sites": "mlp.1,mlp.2", "tokens": 1000, **own}))
    assert type(made.groups[0].members[0]).__name__ == "Mine"
    with pytest.raises(BadInput, match=r"made with my_lab_of_tests\.Mine, which is code of yours.*code=True"):
        load_groups(made.folder)
    (saved, _) = load_groups(made.folder, code=True)
    assert type(saved.members[0]) is type(made.groups[0].members[0])
    assert torch.equal(saved.members[0].W_enc, made.groups[0].members[0].W_enc)
    with pytest.raises(BadInput, match=r"not run unasked: add --kind my_lab_of_tests\.Mine"):
        train(TrainConfig(out=small["out"], resume=True))
    assert len(train(TrainConfig(out=small["out"], resume=True, **own)).groups) == 2


def test_batch_topk_ends_in_thresholds_with_the_same_mean_l0(small):
    made = train(TrainConfig(**{**small, "sparsity": "batch_topk"}))
    for conversion in made.conversion.values():
        assert conversion.l0_after == pytest.approx(conversion.l0_before, abs=1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": "dmo"}, UnknownName, "demo"),
        ({"kind": "transcodr"}, UnknownName, "transcoder"),
        ({"sites": "mpl"}, UnknownName, "mlp"),
        ({"sites": "mlp_out.1"}, UnderstudyError, "mlp.1"),
        ({"sites": "mlp.9"}, UnknownName, "mlp"),
        ({"kind": "crosscoder", "sites": "resid.1"}, BadInput, "several sites"),
        ({"k": 65}, BadInput, "k=65 is more than n_latents=64"),
        ({"k": 0}, BadInput, "at least 1"),
        ({"lr": -1.0}, BadInput, "lr=-1"),
        ({"lr": float("nan")}, BadInput, "lr=nan"),
        ({"sparsity": "topq"}, UnknownName, "topk"),
        ({"sparsity": "threshold"}, UnknownName, "not a known sparsity rule to train with"),
        ({"sparsity": "relu", "l1": -0.1}, BadInput, r"l1=-0\.1: it must be a number 0 or above"),
        ({"sparsity": "gated", "l1": float("nan")}, BadInput, "l1=nan"),
        ({"sparsity": "jumprelu", "target_l0": 65.0}, BadInput, r"target_l0=65\.0 is more than the 64 latents"),
        ({"sparsity": "jumprelu", "bandwidth": 0.0}, BadInput, "bandwidth=0"),
        ({"sparsity": "jumprelu", "l0_penalty": "step", "target_l0": 3.0}, BadInput, "belongs to the quadratic"),
        ({"sparsity": "groupmax", "k": 7}, BadInput, "64 latents do not fall into 7 groups"),
        ({"l1": 0.1}, BadInput, "--l1 means nothing to topk; of the rules here gated, relu take it"),
        ({"objective": "locl"}, UnknownName, "local"),
        ({"objective": "matryoshka", "prefixes": "16,16,16"}, BadInput, "n_latents=64; these add up to 48"),
        ({"objective": "matryoshka", "prefixes": "16,x"}, BadInput, "write sizes of groups, e.g. 64,64,128,256"),
        ({"objective": "matryoshka", "prefixes": "65,-1"}, BadInput, "must be 1 or more"),
        ({"prefixes": "32,32"}, BadInput, "belong to --objective matryoshka, not to local"),
        ({"local_weight": 0.5}, BadInput, "local is local by itself"),
        ({"kind": "crosscoder", "sites": "resid.*", "objective": "kl"}, AcausalReplacement, "Crosscoder must write"),
        ({"kind": "my_lab.sae.MySAE"}, UnknownName, "there is no Python module 'my_lab'"),
        ({"kind": "pathlib.Path"}, BadInput, "pathlib.Path is not a LinearDictionary"),
        ({"sparsity": "pathlib.Pth"}, UnknownName, "Path"),
        ({"ema": 1.0}, BadInput, "ema"),
        ({"k_aux": -1}, BadInput, "k_aux=-1"),
        ({"seed": -1}, BadInput, "seed=-1"),
        ({"data": "stdlb"}, UnknownName, "stdlib"),
        ({"data": "text:/nowhere/at/all"}, UnderstudyError, "/nowhere/at/all"),
        ({"context": 100_000}, BadData, "more than the 256 tokens"),
    ],
)
def test_input_that_does_not_fit_is_refused_before_anything_is_written(small, change, error, message):
    with pytest.raises(error, match=message):
        train(TrainConfig(**{**small, **change}))
    assert not small["out"].exists()


def test_empty_data_is_refused(small, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BadData):
        train(TrainConfig(**{**small, "data": f"text:{tmp_path / 'empty.txt'}"}))


@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN or infinite"), (0.0, "constant")])
def test_activations_that_hold_nothing_are_refused_with_their_site(small, value, says):
    network = open_network("demo")
    with torch.no_grad():
        network.module.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(value)
    with pytest.raises(BadActivations, match=rf"layers\.\d\.\w*.*{says}"):
        train(TrainConfig(**small), network=network)
    assert not small["out"].exists()


def test_a_loss_that_explodes_stops_with_the_batch_saved(small):
    with pytest.raises(NonFiniteLoss, match=r"step \d+.*bad_batch"):
        train(TrainConfig(**{**small, "lr": 1e18}))
    assert (small["out"] / "bad_batch.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_found_before_any_data_is_read(small, monkeypatch):
    monkeypatch.setattr(training, "open_sequences", lambda *args: pytest.fail("read data first"))
    small["out"].write_text("")
    with pytest.raises(BadFolder, match="cannot write to"):
        train(TrainConfig(**{**small, "out": small["out"] / "inside"}))


def test_no_chunk_is_harvested_after_the_last_step(small, monkeypatch):
    asked, chunk = [], Harvest.chunk
    monkeypatch.setattr(Harvest, "chunk", lambda self, number: asked.append(number) or chunk(self, number))
    monkeypatch.setattr(training, "chunk_sequences", lambda *args: 16)
    made = train(TrainConfig(**{**small, "tokens": 2 * 16 * 32}))  # two whole chunks
    assert asked == [0, 0, 1, 1_000_003]  # the sample, the two, the thresholds' own
    assert len(made.folder.checkpoints()) == 1


def test_the_check_runs_a_few_sequences_at_a_time_drawn_from_all(small, monkeypatch):
    sizes = []
    monkeypatch.setattr(finishing, "CHECKED_SEQUENCES", 10)
    drawn, order = [], finishing.Order.stream
    monkeypatch.setattr(finishing.Order, "stream", lambda *args: drawn.append(order(*args)) or drawn[-1])
    network = open_network("demo")
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda batch: sizes.append(batch.n_sequences) or forward(batch))
    made = train(TrainConfig(**small), network=network)
    assert sorted(drawn[-1].tolist()) != list(range(10))
    assert max(sizes[-5:]) <= finishing.AT_ONCE
    assert made.folder.read_json("provenance.json")["thresholds checked on"] == "10 held-out sequences"


def test_the_check_gives_what_one_pass_over_all_would(small):
    made = train(TrainConfig(**{**small, "sites": "mlp.1"}))
    (group,), network = made.groups, made.network
    held_out = finishing.open_sequences(network, small["data"], "held_out", small["context"])
    picked = finishing.Order(len(held_out), 0).stream(0, min(32, len(held_out)))
    batch = held_out.batch(picked)
    rows = {s: v[batch.mask] for s, v in network.record(batch, (*group.reads, *group.writes)).items()}
    (y,) = (rows[s].double() for s in group.writes)
    (hat,) = group.reconstruct(rows).values()
    fvu = float((y - hat).square().sum() / (y - y.mean(0)).square().sum())
    clean = network.loss(network.forward(batch), batch)
    replaced = network.loss(finishing.Replacement(network, [group]).run(batch).output, batch)
    delta = float((replaced - clean).sum() / (batch.targets != -100).sum())
    (found,) = made.conversion.values()
    assert found.fvu_after == pytest.approx(fvu, rel=1e-4)
    assert found.delta_loss_after == pytest.approx(delta, rel=1e-3, abs=1e-5)


def test_figures_that_are_not_finite_do_not_keep_a_run_from_finishing(small, monkeypatch):
    monkeypatch.setattr(
        finishing._Look, "add_loss", lambda self, *args: vars(self).update(extra=float("nan"), targets=1)
    )
    made = train(TrainConfig(**small))
    assert all(c.delta_loss_after is None for c in made.conversion.values())
    assert "not measured" not in str(made)  # nothing to say where both are missing


def test_data_without_a_held_out_part_says_where_thresholds_were_checked(small, monkeypatch):
    def none(*args):
        raise BadData("there is none")

    monkeypatch.setattr(finishing, "open_sequences", none)
    made = train(TrainConfig(**small))
    assert made.folder.read_json("provenance.json")["thresholds checked on"] == "32 train sequences"


# -- what is saved ----------------------------------------------------------------------------------------------------


def _two_layers(tmp_path) -> Group:
    """A cross-layer group whose biases were given in another order than its members write."""
    a, b, x = Site("a"), Site("b"), Site("x")
    arrays = {"W_enc": torch.eye(3), "b_enc": torch.zeros(3), "W_dec": torch.ones(3, 6)}
    layer = CLTLayer({x: 3}, {a: 3, b: 3}, Threshold(torch.zeros(3)), arrays)
    return Group([layer], {b: torch.full((3,), 2.0), a: torch.full((3,), 1.0)})


def test_biases_stay_with_their_sites(tmp_path):
    group, folder = _two_layers(tmp_path), RunFolder(tmp_path)
    for other in (finishing.folded(group), _saved(folder, group)):
        for site, bias in group.biases.items():
            assert torch.equal(other.biases[site], bias)


def _saved(folder: RunFolder, group: Group) -> Group:
    save_weights(folder, [group])
    save_groups(folder, [group])
    return load_groups(folder)[0]


@pytest.mark.parametrize(
    ("settings", "arrays", "says"),
    [
        ({"sparsity": None}, {}, "without 'sparsity'"),
        ({"d_reads": None}, {}, "without 'd_reads'"),
        ({"d_reads": [3, 3]}, {}, "other numbers of widths"),
        ({"sparsity": {"name": "topk"}}, {}, "without 'k'"),
        ({}, {"sparsity.theta": None}, "without 'sparsity.theta'"),
        ({}, {"sparsity.theta": torch.zeros(2)}, r"theta is \(2,\), but 3 latents need \(3,\)"),
        ({}, {"sparsity.theta": torch.zeros(())}, "theta is"),
    ],
)
def test_a_saved_dictionary_that_lacks_something_is_refused_by_name(tmp_path, settings, arrays, says):
    spec = _two_layers(tmp_path).members[0].spec()
    changed = [{k: v for k, v in {**old, **new}.items() if v is not None} for old, new in
               ((spec.settings, settings), (spec.arrays, arrays))]  # fmt: skip
    with pytest.raises(BadWeights, match=says):
        from_spec(DictionarySpec(spec.kind, spec.reads, spec.writes, changed[0], changed[1]))


def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    _saved(folder, _two_layers(tmp_path))
    described = folder.read_json("groups.json")
    described[0]["b_dec"].append("c:out")
    folder.write_json("groups.json", described)
    with pytest.raises(BadWeights, match=r"groups.json beside it.*0\.b_dec\.2"):
        load_groups(folder)


@pytest.mark.parametrize(("rule", "finds"), [
    ("topk", "largest_of_candidates"), ("batch_topk", "above_of_candidates"), ("jumprelu", "above_of_candidates"),
])  # fmt: skip
def test_candidates_in_few_bits_train_the_same_and_are_used(small, monkeypatch, rule, finds):
    from understudy.core import latents

    calls, find = [], getattr(latents, finds)
    monkeypatch.setattr(latents, finds, lambda *a: calls.append(a[4]) or find(*a))
    fvu = {}
    for search in ("fp32", "bf16", "int8"):
        calls.clear()
        made = train(TrainConfig(**{**small, "sparsity": rule, "search": search, "out": small["out"] / search}))
        fvu[search] = sum(t["fvu"] for t in made.folder.metrics()[-1]["groups"].values())
        assert set(calls) == ({search} if search != "fp32" else set())
        assert all(m.search == "fp32" for g in made.groups for m in g.members), "what is used later is plain"
        assert made.folder.read_json("provenance.json")["search"] == search
    assert fvu["bf16"] == pytest.approx(fvu["fp32"], rel=0.01)
    assert fvu["int8"] == pytest.approx(fvu["fp32"], rel=0.01)


def test_auto_takes_candidates_where_they_cost_less(monkeypatch):
    cpu, many = torch.device("cpu"), {"n_latents": 8192, "k": 16}
    monkeypatch.setattr(searching, "multiplies_int8", lambda: True)
    assert search_of(TrainConfig(**many), cpu) == "int8"
    assert search_of(TrainConfig(**many, sparsity="jumprelu"), cpu) == "int8"
    assert search_of(TrainConfig(**many, search="bf16"), cpu) == "bf16"
    assert search_of(TrainConfig(**many, search="fp32"), cpu) == "fp32"
    assert search_of(TrainConfig(n_latents=4096), cpu) == "fp32", "few latents"
    assert search_of(TrainConfig(**many, sparsity="relu"), cpu) == "fp32", "many are kept"
    assert search_of(TrainConfig(**many), torch.device("cuda")) == "fp32"
    assert search_of(TrainConfig(**many | {"k": 256}), cpu) == "int8"
    assert search_of(TrainConfig(**many | {"k": 256}, sparsity="batch_topk"), cpu) == "fp32", "most blocks hold one"
    monkeypatch.setattr(searching, "multiplies_int8", lambda: False)
    assert search_of(TrainConfig(**many), cpu) == "fp32", "no instruction for it"


def test_a_run_may_be_continued_by_another_search(small):
    """As on a processor that has no instruction for the first."""
    train(TrainConfig(**{**small, "search": "int8"}))
    (small["out"] / "groups.json").unlink()
    again = train(TrainConfig(out=small["out"], resume=True, search="fp32"))
    assert again.folder.read_json("provenance.json")["search"] == "fp32"
    assert again.config.n_latents == small["n_latents"]
    (small["out"] / "groups.json").unlink()
    assert train(TrainConfig(out=small["out"], resume=True)).config.search == "fp32", "from here on"
    config = small["out"] / "config.yaml"
    config.write_text("".join(x for x in config.read_text().splitlines(True) if not x.startswith("search")))
    (small["out"] / "groups.json").unlink()
    searched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "multiplies_int8", lambda: searched.append(1) or True)
        assert train(TrainConfig(out=small["out"], resume=True)).config.search == "fp32", "a run from before"
    assert not searched


@pytest.mark.parametrize("rule", ["relu", "gated", "groupmax"])
@pytest.mark.parametrize("search", ["bf16", "int8"])
def test_candidates_are_refused_where_many_latents_are_kept(small, rule, search):
    with pytest.raises(BadInput, match=f"--search {search} .* is for .*, not for {rule}"):
        train(TrainConfig(**{**small, "search": search, "sparsity": rule}))
    assert not small["out"].exists()
