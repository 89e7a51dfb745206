"""Runs written in the files of other libraries: what comes back is the same map; what cannot be said is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from tests.formats import files
from understudy.core.names import find_sites
from understudy.core.records.errors import BadFolder, BadInput, UnknownName
from understudy.formats import open_source
from understudy.networks import HFCausalLM, open_network
from understudy.workflows._scoring.opening import ScoreConfig, open_groups
from understudy.workflows.evaluate import open_run
from understudy.workflows.export import ExportConfig, export
from understudy.workflows.score import score
from understudy.workflows.train import TrainConfig, train


def opened(path, network):
    return open_groups(ScoreConfig(dictionary=str(path)), network)


def same(network, groups, others) -> None:
    acts = network.record(network.example(), [s for g in [*groups, *others] for s in (*g.reads, *g.writes)])
    ours, theirs = ({s: v for g in gs for s, v in g.reconstruct(acts).items()} for gs in (groups, others))
    assert set(ours) == set(theirs)
    for site, value in ours.items():
        assert (theirs[site] - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize("form", ["saelens", "circuit-tracer"])
def test_transcoders_come_back_as_they_were(finished, tmp_path, form):
    files_written = export(ExportConfig(run=finished.folder.path, format=form, out=tmp_path / "out"))
    assert all(path.is_file() for path in files_written)
    same(finished.network, open_run(finished.folder.path).groups, opened(tmp_path / "out", finished.network))


def test_saes_come_back_and_say_where_they_belong(small, tmp_path):
    made = train(TrainConfig(**small | {"kind": "sae", "sites": "resid.1,mlp_out.2", "out": tmp_path / "run"}))
    export(ExportConfig(run=tmp_path / "run", out=tmp_path / "out"))
    assert {e.address: e.read for e in open_source(str(tmp_path / "out"))} == {
        "blocks.1.hook_resid_post": "model.layers.1.output",
        "blocks.2.hook_mlp_out": "model.layers.2.mlp.output",
    }
    metadata = json.loads((tmp_path / "out" / "blocks.1.hook_resid_post" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert metadata["model_name"] == "demo"
    same(made.network, made.groups, opened(tmp_path / "out", made.network))


def test_a_cross_layer_transcoder_comes_back_with_its_biases(small, tmp_path):
    made = train(TrainConfig(**small | {"kind": "clt", "sites": "mlp", "out": tmp_path / "run"}))
    export(ExportConfig(run=tmp_path / "run", format="circuit-tracer", out=tmp_path / "out"))
    (group,) = opened(tmp_path / "out", made.network)
    assert [len(m.writes) for m in group.members] == [4, 3, 2, 1]
    same(made.network, made.groups, [group])
    with pytest.raises(BadInput, match="saelens holds dictionaries of one site"):
        export(ExportConfig(run=tmp_path / "run", out=tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_topk_dictionaries_of_others_go_on_to_sparsify(text, tmp_path):
    network = open_network("demo")
    w = files.weights(192, 64)
    for i in (1, 3):
        files.saelens(tmp_path / "in" / f"{i}", w, f"blocks.{i}.hook_mlp_out", architecture="topk", k=8)
    more = {"data": f"text:{text}", "context": 32, "sequences": 4, "rollouts": 0, "fit_places": 300}
    score(network, tmp_path / "in", out=tmp_path / "scored", **more)
    export(ExportConfig(run=tmp_path / "scored", format="sparsify", out=tmp_path / "out"))
    assert [e.address for e in open_source(str(tmp_path / "out"))] == ["layers.1.mlp", "layers.3.mlp"]
    same(network, opened(tmp_path / "in", network), opened(tmp_path / "out", network))
    (first, _) = opened(tmp_path / "out", network)
    sites = find_sites(network, "mlp_out.1")
    assert torch.equal(first.encode(network.record(network.example(), sites))[0].z.l0().unique(), torch.tensor([8]))


@pytest.mark.parametrize(
    ("form", "sites", "says"),
    [
        ("sparsify", "mlp", "has the rule threshold"),
        ("circuit-tracer", "mlp.1,mlp.2", "every layer from 0 on; this run has layers 1, 2"),
    ],
)
def test_what_a_format_cannot_say_is_refused_by_name_and_leaves_nothing(small, tmp_path, form, sites, says):
    train(TrainConfig(**small | {"sites": sites, "tokens": 2000, "out": tmp_path / "run"}))
    with pytest.raises(BadInput, match=says):
        export(ExportConfig(run=tmp_path / "run", format=form, out=tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_sae_is_no_transcoder(small, tmp_path):
    train(TrainConfig(**small | {"kind": "sae", "sites": "mlp_out", "tokens": 2000, "out": tmp_path / "run"}))
    with pytest.raises(BadInput, match="has a sae"):
        export(ExportConfig(run=tmp_path / "run", format="circuit-tracer", out=tmp_path / "out"))


def test_nothing_is_written_over(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BadFolder, match="not empty"):
        export(ExportConfig(run=finished.folder.path, out=tmp_path / "out"))
    shutil.rmtree(tmp_path / "out")
    assert export(ExportConfig(run=finished.folder.path, out=tmp_path / "out"))


# -- scores of others' files, passed on --------------------------------------------------------------------------------

LAYERS, D, N = 3, 24, 40


@pytest.fixture(scope="module")
def gemma():
    """Gemma 2's architecture with norms that matter: a gain before the MLP, another behind it."""
    torch.manual_seed(0)
    tokenizer = open_network("demo").tokenizer
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data += 0.4 * torch.rand_like(p)
    return HFCausalLM(model, "tiny-gemma-2", tokenizer)


def gemma_scope_transcoders(root) -> None:
    """In the place where, and under the names by which, the public ones lie."""
    for layer in range(LAYERS):
        folder = root / "gemma-scope-2b-pt-transcoders" / f"layer_{layer}" / "width_16k" / f"average_l0_{9 + layer}"
        folder.mkdir(parents=True)
        w = {
            k: files.random(*v.shape, seed=10 * layer + i, scale=0.2)
            for i, (k, v) in enumerate(files.weights(D, N).items())
        }
        w |= {"threshold": files.random(N, seed=99 + layer).abs()}
        np.savez(folder / "params.npz", **{k: v.numpy() for k, v in w.items()})


def figures(card) -> dict[str, float]:
    found = {f"{d.name} {k}": getattr(d, k).value for d in card.dictionaries for k in ("fvu", "l0", "dead")}
    return found | {k: getattr(card.replacement, k).value for k in ("delta_loss", "kl", "top1_agreement")}


@pytest.mark.parametrize("form", ["saelens", "circuit-tracer"])
def test_gemma_scope_goes_on_to_other_libraries_and_scores_the_same(gemma, text, tmp_path, form):
    """Its transcoders read a norm before the gain and write behind the second norm: neither has a module's own name."""
    gemma_scope_transcoders(tmp_path)
    more = {"data": f"text:{text}", "context": 32, "sequences": 6, "rollouts": 0, "fit_places": 300}
    source = f"{tmp_path}/gemma-scope-2b-pt-transcoders/layer_*/width_16k/canonical"
    before = score(gemma, source, out=tmp_path / "before", **more)
    export(ExportConfig(run=tmp_path / "before", format=form, out=tmp_path / "out"), network=gemma)
    entries = open_source(str(tmp_path / "out"))
    hooks = {"saelens": "model.layers.{}.pre_feedforward_layernorm.output", "circuit-tracer": "blocks.{}.mlp.hook_in"}
    assert [e.read for e in entries] == [hooks[form].format(i) for i in range(LAYERS)]
    after = score(gemma, tmp_path / "out", out=tmp_path / "after", **more)
    assert figures(after) == pytest.approx(figures(before), rel=1e-4, abs=1e-5)
    assert figures(before)["kl"] > 1e-3
    if form == "saelens":
        metadata = json.loads((tmp_path / "out" / "blocks.1.hook_mlp_out" / "cfg.json").read_text())["metadata"]
        assert (metadata["hook_name"], metadata["hook_name_out"]) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")


def test_an_sae_behind_a_norm_goes_to_sparsify_under_the_norms_path(gemma, text, tmp_path):
    for i in range(2):
        files.saelens(
            tmp_path / "in" / f"{i}", files.weights(D, N), f"blocks.{i}.hook_mlp_out", architecture="topk", k=4
        )
    more = {"data": f"text:{text}", "context": 32, "sequences": 4, "rollouts": 0, "fit_places": 200}
    score(gemma, tmp_path / "in", out=tmp_path / "scored", **more)
    export(ExportConfig(run=tmp_path / "scored", format="sparsify", out=tmp_path / "out"), network=gemma)
    entries = open_source(str(tmp_path / "out"))
    assert [e.writes for e in entries] == [(f"layers.{i}.post_feedforward_layernorm:out",) for i in range(2)]
    same(gemma, opened(tmp_path / "in", gemma), opened(tmp_path / "out", gemma))


def test_what_is_between_attention_and_mlp_can_be_read_and_not_replaced(gemma, tmp_path):
    """The stream goes past the norm: an SAE put at the norm's input alone would look better than it is."""
    files.saelens(tmp_path, files.weights(D, N), "blocks.1.hook_resid_mid")
    with pytest.raises(UnknownName, match="can only be read"):
        opened(tmp_path, gemma)
    files.saelens(
        tmp_path, files.weights(D, N), "blocks.1.hook_resid_mid", architecture="transcoder", apply_b_dec_to_input=False,
        metadata={"hook_name_out": "blocks.1.hook_mlp_out"},
    )  # fmt: skip
    (group,) = opened(tmp_path, gemma)
    assert str(group.reads[0]) == "model.layers.1.pre_feedforward_layernorm:in"


def test_gemma_scope_2s_cross_layer_transcoders_go_on_unless_they_have_a_skip(text, tmp_path):
    torch.manual_seed(0)
    tokenizer = open_network("demo").tokenizer
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    network = HFCausalLM(transformers.AutoModelForCausalLM.from_config(config), "tiny-gemma-3", tokenizer)
    more = {"data": f"text:{text}", "context": 32, "sequences": 4, "rollouts": 0, "fit_places": 200}
    for skip in (False, True):
        files.gemma_scope_2_clt(tmp_path / str(skip), LAYERS, D, N, skip)
        score(network, tmp_path / str(skip), out=tmp_path / f"{skip}-scored", **more)
    out = tmp_path / "out"
    export(ExportConfig(run=tmp_path / "False-scored", format="circuit-tracer", out=out), network=network)
    same(network, opened(tmp_path / "False", network), opened(out, network))
    with pytest.raises(BadInput, match="no place for W_skip"):
        export(
            ExportConfig(run=tmp_path / "True-scored", format="circuit-tracer", out=tmp_path / "no"), network=network
        )
    assert not (tmp_path / "no").exists()
