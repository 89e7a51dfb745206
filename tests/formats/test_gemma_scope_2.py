"""Gemma Scope for Gemma 3 from files laid out as the public ones are, against the arithmetic written out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.formats import files
from tests.formats.files import D, N, random, weights
from tests.formats.opened import READ, close, codes, opened, written
from understudy.core.records.errors import BadWeights, UnknownName
from understudy.formats import open_source

X = random(30, D, seed=9, scale=1.0)
IN, OUT = "model.layers.3.pre_feedforward_layernorm.output", "model.layers.3.post_feedforward_layernorm.output"


def only(root):
    (entry,) = open_source(str(root))
    return entry


def test_a_transcoder_with_and_without_its_skip(tmp_path):
    w = weights()
    pre = X @ w["W_enc"] + w["b_enc"]
    z = pre.relu() * (pre > random(N, seed=6).abs())
    y = z @ w["W_dec"] + w["b_dec"]
    for skip in (False, True):
        name = "transcoder_all/layer_3_width_16k_l0_small" + ("_affine" if skip else "")
        files.gemma_scope_2(tmp_path / str(skip), name, IN, OUT, skip=skip)
        entry = only(tmp_path / str(skip))
        assert (entry.format, entry.kind, entry.read, entry.writes) == ("gemma-scope-2", "transcoder", IN, (OUT,))
        assert (entry.address, entry.model) == (name, "google/gemma-3-1b-pt")
        close(codes(opened(entry), X), z)
        close(written(opened(entry), X), y + (X @ random(D, D, seed=5) if skip else 0))


def test_an_sae_reads_what_it_writes(tmp_path):
    files.gemma_scope_2(tmp_path, "resid_post/layer_3_width_16k_l0_small", "model.layers.3.output")
    w = weights()
    pre = X @ w["W_enc"] + w["b_enc"]
    assert only(tmp_path).kind == "sae"
    z = pre.relu() * (pre > random(N, seed=6).abs())
    close(written(opened(only(tmp_path)), X), z @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("folder", "hooks"),
    [
        ("resid_post_all/layer_3_width_16k_l0_small", ("model.layers.3.output",) * 2),
        ("attn_out/layer_3_width_65k_l0_big", ("model.layers.3.self_attn.o_proj.input",) * 2),
        ("mlp_out_all/layer_3_width_16k_l0_big", (OUT, OUT)),
        ("transcoder_all/layer_3_width_16k_l0_small_affine", (IN, OUT)),
    ],
)
def test_without_a_configuration_the_folders_name_says_the_site(tmp_path, folder, hooks):
    """Some of the published folders have no config.json; within their repository the name is enough."""
    path = files.gemma_scope_2(tmp_path / "gemma-scope-2-4b-it", folder, "x")
    (path / "config.json").unlink()
    entry = only(tmp_path)
    assert (entry.read, entry.writes[0], entry.model) == (*hooks, "google/gemma-3-4b-it")
    path.rename(tmp_path / "mine")
    with pytest.raises(Exception, match="holds no dictionary"):
        open_source(str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architecture": "relu"}, "'relu' is not read"),
        ({"affine_connection": True}, "affine_skip_connection is missing"),
        ({"hf_hook_point_in": None}, "does not say where it belongs"),
        ({"hf_hook_point_in": 3}, "does not say where it belongs"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, config, says):
    path = files.gemma_scope_2(tmp_path, "transcoder/layer_3_width_16k_l0_small", IN, OUT) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(BadWeights, match=says):
        open_source(str(tmp_path))


# -- cross-layer transcoders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_a_cross_layer_transcoder_is_the_published_sum(tmp_path, skip):
    """y_j = sum over layers i of f_i w_dec_i[:, j] + b_dec_j [+ x_j affine_j], with x the same in every layer here."""
    folder = files.gemma_scope_2_clt(tmp_path, skip=skip)
    entries = open_source(str(tmp_path))
    assert [e.address.rpartition("/")[2] for e in entries] == ["0", "1", "2"]
    assert len({e.group for e in entries}) == 1
    assert [len(e.writes) for e in entries] == [3, 2, 1]
    assert entries[1].read == "model.layers.1.pre_feedforward_layernorm.output"
    assert entries[1].writes[-1] == "model.layers.2.post_feedforward_layernorm.output"
    assert entries[0].model == "google/gemma-3-1b-pt"
    params = [load_file(folder / f"params_layer_{i}.safetensors") for i in range(3)]
    stacked = {k: torch.stack([p[k] for p in params]) for k in params[0]}
    pre = torch.einsum("rd,ldn->rln", X, stacked["w_enc"]) + stacked["b_enc"]
    f = pre.relu() * (pre > stacked["threshold"])
    wanted = torch.einsum("rin,injd->rjd", f, stacked["w_dec"]) + stacked["b_dec"]
    if skip:
        wanted = wanted + torch.einsum("rd,ldo->rlo", X, stacked["affine_skip_connection"])
    total = torch.zeros_like(wanted)
    for i, entry in enumerate(entries):
        dictionary = opened(entry)
        close(codes(dictionary, X), f[:, i])
        total[:, i] += entry.bias()
        for j, value in enumerate(dictionary.reconstruct({READ: X}).values()):
            total[:, i + j] += value
    close(total, wanted)


def change(folder, layer, edit):
    path = folder / f"params_layer_{layer}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.update(w_dec=t["w_dec"][:, 1:].contiguous()), "w_dec is .40, 2, 12. where .40, 3, 12. is needed"),
        (lambda t: t.pop("threshold"), "lacks threshold"),
        (lambda t: t.update(W_skip=torch.zeros(D, D)), "also holds W_skip"),
        (lambda t: t.update(b_dec=torch.zeros(5)), "b_dec is"),
    ],
)
def test_a_layer_of_another_shape_is_refused_before_anything_is_read(tmp_path, edit, says):
    change(files.gemma_scope_2_clt(tmp_path), 1, edit)
    with pytest.raises(BadWeights, match=says):
        open_source(str(tmp_path))


def test_a_layer_that_writes_before_itself_is_refused(tmp_path):
    """Decoders counted from the layer itself would look like this; taken as absolute they would be another map."""
    change(files.gemma_scope_2_clt(tmp_path), 2, lambda t: t["w_dec"].copy_(t["w_dec"].roll(1, 1)))
    entries = open_source(str(tmp_path))
    entries[1].load()
    with pytest.raises(BadWeights, match="latents of layer 2 write in layers before it"):
        entries[2].load()


def test_a_missing_layer_is_a_missing_part_of_the_sum(tmp_path):
    (files.gemma_scope_2_clt(tmp_path) / "params_layer_1.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"w_dec is .40, 3, 12. where .40, 2, 12."):
        open_source(str(tmp_path))


def test_what_is_not_asked_for_is_not_opened(tmp_path):
    """A whole repository holds crosscoders and embeddings too; a glob of the others does not meet them."""
    files.gemma_scope_2_clt(tmp_path, name="crosscoder/layer_7_13_17_width_65k_l0_medium")
    files.gemma_scope_2_clt(tmp_path)
    root = tmp_path / "gemma-scope-2-1b-pt"
    files.gemma_scope_2(root, "transcoder_all/layer_3_width_16k_l0_small", IN, OUT)
    assert len(open_source(f"{root}/clt/*")) == 3
    assert len(open_source(f"{root}/transcoder_all/layer_*")) == 1
    with pytest.raises(BadWeights, match="crosscoders are not"):
        open_source(f"{root}/*")
    with pytest.raises(UnknownName, match="transcoder_all"):
        open_source(f"{root}/transcoder_*/layer_9*")


def test_crosscoders_and_other_hooks_are_refused_by_name(tmp_path):
    files.gemma_scope_2_clt(tmp_path / "a", name="crosscoder/layer_7_13_17_width_65k_l0_medium")
    with pytest.raises(BadWeights, match="crosscoders are not"):
        open_source(str(tmp_path / "a"))
    folder = files.gemma_scope_2_clt(tmp_path / "b")
    for hooks in ("model.layers.0.output", ["model.layers.0.pre_feedforward_layernorm.output", 3]):
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "hf_hook_point_in": hooks}))
        with pytest.raises(BadWeights, match="hf_hook_point_in"):
            open_source(str(tmp_path / "b"))
    hooks = [f"model.layers.{i}.pre_feedforward_layernorm.output" for i in range(3)]
    (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu", "hf_hook_point_in": hooks}))
    assert len(open_source(str(tmp_path / "b"))) == 3
