"""Runs written in the files of other libraries: what comes back is the same map; what cannot be said is refused."""

import json
import shutil

import pytest
import torch

from tests.formats import files
from understudy.core.names import find_sites
from understudy.core.records.errors import BadFolder, BadInput
from understudy.formats import open_source
from understudy.networks import open_network
from understudy.workflows._scoring.opening import ScoreConfig, open_groups
from understudy.workflows.evaluate import open_run
from understudy.workflows.export import ExportConfig, export
from understudy.workflows.score import score
from understudy.workflows.train import TrainConfig, train


def opened(path, network):
    return open_groups(ScoreConfig(dictionary=str(path)), network)


def same(network, groups, others) -> None:
    acts = network.record(network.example(), [s for g in groups for s in (*g.reads, *g.writes)])
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
