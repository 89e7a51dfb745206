"""Each format from a file written by hand, against its own arithmetic written out in a line."""

import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.formats import files
from tests.formats.files import D, K, N, random, weights
from tests.formats.opened import close, codes, opened, written
from understudy.core.records.errors import BadWeights, UnknownName
from understudy.formats import FORMATS, KNOWN, check_apart, known_for, open_source

X = random(30, D, seed=9, scale=1.0)


def only(root):
    (entry,) = open_source(str(root))
    return entry


def check(entry, z, y):
    close(codes(opened(entry), X), z)
    close(written(opened(entry), X), y)


# -- SAELens ----------------------------------------------------------------------------------------------------------


def test_saelens_standard(tmp_path):
    w = weights()
    z = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    entry = only(files.saelens(tmp_path))
    assert (entry.format, entry.kind, entry.read, entry.model) == (
        "saelens",
        "sae",
        "blocks.1.hook_mlp_out",
        "some-model",
    )
    assert (entry.d_in, entry.n_latents) == (D, N)
    check(entry, z, z @ w["W_dec"] + w["b_dec"])


def test_saelens_reads_x_as_it_is_where_it_says_so(tmp_path):
    w = weights()
    z = (X @ w["W_enc"] + w["b_enc"]).relu()
    check(only(files.saelens(tmp_path, apply_b_dec_to_input=False)), z, z @ w["W_dec"] + w["b_dec"])


def test_saelens_gated(tmp_path):
    w = weights()
    del w["b_enc"]
    w |= {"b_gate": random(N, seed=5), "b_mag": random(N, seed=6), "r_mag": random(N, seed=7)}
    h = X - w["b_dec"]
    gate = (h @ w["W_enc"] + w["b_gate"]) > 0
    z = gate * (h @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    check(only(files.saelens(tmp_path, w, architecture="gated")), z, z @ w["W_dec"] + w["b_dec"])


def test_saelens_before_version_6(tmp_path):
    """All keys side by side under their old names, TopK said by the activation function."""
    folder = files.saelens(tmp_path)
    (folder / "cfg.json").write_text(
        '{"hook_point": "blocks.0.hook_resid_pre", "d_in": 12, "d_sae": 40, "activation_fn_str": "topk", '
        '"activation_fn_kwargs": {"k": 5}, "model_name": "gpt2-small", "normalize_activations": false}'
    )
    entry = only(folder)
    assert (entry.read, entry.rule, entry.model) == ("blocks.0.hook_resid_pre", {"name": "topk", "k": K}, "gpt2-small")
    w = weights()
    pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    top = pre.topk(K)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    check(entry, z, z @ w["W_dec"] + w["b_dec"])


def test_saelens_one_input_scale_is_folded_and_asked_for_if_it_is_missing(tmp_path):
    folder = files.saelens(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.raises(BadWeights, match=r"activation_scaler\.json"):
        open_source(str(folder))
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    w = weights()
    z = ((0.25 * X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    check(only(folder), z, (z @ w["W_dec"] + w["b_dec"]) / 0.25)


def test_saelens_trained_on_centred_weights_passes_the_mean_through(tmp_path):
    """On x = h + m, h of mean 0: the latents of h; what is written is h's reconstruction + m."""
    w = weights()
    w["b_dec"] -= w["b_dec"].mean()
    w["W_dec"] -= w["W_dec"].mean(1, keepdim=True)
    folder = files.saelens(tmp_path, w, metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    h = X - X.mean(1, keepdim=True)
    z = ((h - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    check(only(folder), z, z @ w["W_dec"] + w["b_dec"] + X.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"architecture": "temporal"}, "temporal"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"architecture": "topk", "k": 41}, "k=41"),
        ({"architecture": "topk", "k": "many"}, "k='many'"),
        ({"d_in": 13}, "d_in=13"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"architecture": "transcoder"}, "hook_name_out"),
        ({"metadata": {"hook_name": None}}, "hook_name"),
        ({"metadata": {"hook_head_index": 3}}, "head 3"),
    ],
)
def test_saelens_says_what_it_does_not_read(tmp_path, cfg, says):
    with pytest.raises(BadWeights, match=says):
        open_source(str(files.saelens(tmp_path, **cfg)))


# -- sparsify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transcodes", [False, True])
def test_sparsify(tmp_path, transcodes):
    files.sparsify(tmp_path, transcode=transcodes, skip_connection=transcodes)
    entry = only(tmp_path)
    assert (entry.read, entry.writes[0]) == (f"layers.1.mlp:{'in' if transcodes else 'out'}", "layers.1.mlp:out")
    assert entry.model == "some-model"
    w = weights()
    pre = ((X if transcodes else X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    top = pre.topk(K)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    check(entry, z, z @ w["W_dec"] + w["b_dec"] + (X @ random(D, D, seed=5).T if transcodes else 0))


def test_sparsify_keeps_the_largest_of_each_group(tmp_path):
    """Known answer: groups of 8 consecutive latents, one latent kept in each, above 0 only."""
    files.sparsify(tmp_path, activation="groupmax")
    w = weights()
    pre = ((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    groups = pre.unflatten(1, (K, N // K))
    z = torch.where(groups == groups.amax(2, keepdim=True), groups, 0).flatten(1)
    assert ((z > 0).sum(1) <= K).all()
    check(only(tmp_path), z, z @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"activation": "groupmax", "k": 7}, "40 latents are not 7 groups"),
        ({"activation": "groupmax", "k": 0}, "k=0"),
        ({"activation": "relu"}, "'relu' are not read, only topk or groupmax"),
        ({"activation": ["topk"]}, "are not read"),
    ],
)
def test_sparsify_says_what_it_does_not_read(tmp_path, cfg, says):
    files.sparsify(tmp_path, **cfg)
    with pytest.raises(BadWeights, match=says):
        open_source(str(tmp_path))


# -- Gemma Scope ------------------------------------------------------------------------------------------------------

KINDS = {
    "res": ("sae", "blocks.3.hook_resid_post"), "mlp": ("sae", "blocks.3.hook_mlp_out"),
    "att": ("sae", "blocks.3.attn.hook_z"), "transcoders": ("transcoder", "blocks.3.ln2.hook_normalized"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_gemma_scope(tmp_path, kind):
    files.gemma_scope(tmp_path, kind, 3)
    entry = only(tmp_path)
    assert (entry.kind, entry.read) == KINDS[kind]
    assert entry.writes == (("blocks.3.hook_mlp_out",) if kind == "transcoders" else (entry.read,))
    assert entry.model == "google/gemma-2-2b"
    w = weights()
    pre = X @ w["W_enc"] + w["b_enc"]
    z = pre.relu() * (pre > random(N, seed=6).abs())
    check(entry, z, z @ w["W_dec"] + w["b_dec"])


def test_gemma_scope_does_not_guess_the_site_of_loose_arrays(tmp_path):
    path = files.gemma_scope(tmp_path, "res", 3)
    loose = tmp_path / "mine" / "layer_3"
    loose.mkdir(parents=True)
    path.rename(loose / "params.npz")
    with pytest.raises(BadWeights, match="not the site they belong to"):
        open_source(str(tmp_path / "mine"))


def test_canonical_is_the_l0_nearest_to_100(tmp_path):
    for layer in (0, 1):
        for l0 in (20, 90, 300):
            files.gemma_scope(tmp_path, "res", layer, l0 + layer)
    root = tmp_path / "gemma-scope-2b-pt-res"
    found = [e.address for e in open_source(f"{root}/layer_*/width_16k/canonical")]
    assert found == [f"layer_{i}/width_16k/average_l0_{90 + i}" for i in (0, 1)]
    assert len(open_source(f"{root}/layer_1/*/*")) == 3
    with pytest.raises(Exception, match="alternatives"):
        check_apart(open_source(str(root)))
    with pytest.raises(UnknownName, match="layer_0/width_16k"):
        open_source(f"{root}/layer_*/width_99k/*")


# -- circuit-tracer ---------------------------------------------------------------------------------------------------


def test_circuit_tracer_transcoders_of_some_layers(tmp_path):
    files.circuit_tracer(tmp_path, 3)
    (tmp_path / "layer_1.safetensors").unlink()
    entries = open_source(str(tmp_path))
    assert [e.read for e in entries] == ["blocks.0.mlp.hook_in", "blocks.2.mlp.hook_in"]
    w = weights()
    z = (X @ w["W_enc"] + w["b_enc"]).relu()
    check(entries[1], z, z @ w["W_dec"] + w["b_dec"])


def test_a_folder_without_dictionaries_says_what_was_looked_for(tmp_path):
    with pytest.raises(UnknownName, match=r"sae_weights\.safetensors"):
        open_source(str(tmp_path))
    with pytest.raises(UnknownName, match="is not there"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(UnknownName, match="write hf:google/gemma-scope-2b-pt-res"):
        open_source("google/gemma-scope-2b-pt-res")


def test_the_hub_is_asked_for_what_was_named_and_says_what_to_pass_instead(tmp_path, monkeypatch):
    asked = []
    files.saelens(tmp_path / "blocks.1")

    def fetch(repo, pattern):
        asked.append((repo, pattern))
        return tmp_path

    assert len(open_source("hf:me/mine:blocks.*", fetch)) == 1
    assert asked == [("me/mine", "blocks.*")]
    with pytest.raises(UnknownName, match="ORG/REPO"):
        open_source("hf:mine")


@pytest.mark.parametrize("folders", ["layer_0/*", "layer_*/width_16k/canonical"])
def test_a_hub_that_cannot_be_reached_says_what_to_pass(tmp_path, folders):
    """The real client, against an address where nothing listens."""
    code = f"from understudy.formats import open_source; open_source('hf:google/gemma-scope-2b-pt-res:{folders}')"
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    message = done.stderr.splitlines()[-1]
    assert "UnderstudyError: hf:google/gemma-scope-2b-pt-res could not be reached" in message
    assert f"--include '{folders.replace('canonical', '*')}/*'" in message
    assert "pass that folder" in message


def test_public_dictionaries_are_listed_by_network_and_in_known_formats():
    assert {row.format for row in KNOWN} == set(FORMATS)
    assert {row.network for row in known_for("hf:google/Gemma-2-2b")} == {"google/gemma-2-2b"}
    assert known_for("nothing-like-it") == []
    assert all(re.fullmatch(r"hf:[\w.-]+/[\w.-]+(:\S+)?", row.source) for row in KNOWN)


def test_nothing_but_headers_is_read_before_it_is_needed(tmp_path, monkeypatch):
    from understudy.formats import _files

    files.saelens(tmp_path)
    files.gemma_scope(tmp_path, "res", 0)
    read = []
    monkeypatch.setattr(_files.TensorFile, "read", lambda self, name: read.append(name))
    assert len(open_source(str(tmp_path))) == 2
    assert read == []


def test_half_precision_is_read_as_float32(tmp_path):
    files.saelens(tmp_path, {k: v.bfloat16() for k, v in weights().items()}, dtype="bfloat16")
    arrays = only(tmp_path).load()
    assert {v.dtype for v in arrays.values()} == {torch.float32}
    stored = load_file(tmp_path / "sae_weights.safetensors")["W_dec"]
    assert torch.equal(arrays["W_dec"], stored.float())
