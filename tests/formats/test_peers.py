"""Against the real libraries: what they save opens here, what is written here opens there, with the same numbers.

Needs their packages in another environment: UNDERSTUDY_PEERS=/path/to/python with sae-lens, eai-sparsify and
circuit-tracer installed (the latter without its dependencies beyond transformer-lens).
"""

import os
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.formats import files
from tests.formats.opened import close, codes, opened, written
from understudy.core.dictionary import DictionarySpec
from understudy.core.site import Site
from understudy.formats import circuit_tracer, open_source, saelens, sparsify

PYTHON = os.environ.get("UNDERSTUDY_PEERS", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="UNDERSTUDY_PEERS names no python with the other libraries")
D, N, K, ROWS = 12, 40, 5, 30

START = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
torch.manual_seed(0)
here = Path(sys.argv[1])
x = load_file(here / "x.safetensors")["x"]
def keep(name, **tensors):
    save_file({k: v.detach().float().contiguous() for k, v in tensors.items()}, here / f"{name}.out")
def fill(module):
    for name, p in module.named_parameters():
        p.data = 0.5 * torch.randn(p.shape) + (0.3 if "threshold" in name else 0.0)
"""


def peer(folder: Path, script: str) -> dict[str, dict[str, torch.Tensor]]:
    """Run a script there; what it kept, by name."""
    save_file({"x": torch.randn(ROWS, D, generator=torch.Generator().manual_seed(1))}, folder / "x.safetensors")
    code = START + textwrap.dedent(script)
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {p.stem: load_file(p) for p in folder.glob("*.out")}


def x(folder: Path) -> torch.Tensor:
    return load_file(folder / "x.safetensors")["x"]


SAELENS = {
    "standard": {}, "topk": {"k": K}, "topk_rescaled": {"k": K, "rescale_acts_by_decoder_norm": True}, "jumprelu": {},
    "gated": {}, "standard_plain_input": {"apply_b_dec_to_input": False}, "transcoder": {"d_out": 9},
    "skip_transcoder": {"d_out": 9}, "jumprelu_transcoder": {"d_out": 9}, "jumprelu_skip_transcoder": {"d_out": 9},
}  # fmt: skip


def test_what_saelens_saves_opens_here(tmp_path):
    found = peer(tmp_path, f"""
        from sae_lens import SAE
        for name, more in {SAELENS!r}.items():
            architecture = name.removesuffix("_rescaled").removesuffix("_plain_input")
            cfg = dict(architecture=architecture, d_in={D}, d_sae={N}, dtype="float32", device="cpu",
                       apply_b_dec_to_input="transcoder" not in name, normalize_activations="none",
                       metadata=dict(hook_name="blocks.0.hook_mlp_in", hook_name_out="blocks.0.hook_mlp_out",
                                     model_name="m", sae_lens_version="6.1.0")) | more
            sae = SAE.from_dict(cfg)
            fill(sae)
            sae.save_model(here / "saved" / name)
            keep(name, z=sae.encode(x), y=sae(x))
    """)  # fmt: skip
    entries = {e.address: e for e in open_source(str(tmp_path / "saved"))}
    assert set(entries) == set(SAELENS)
    for name, entry in entries.items():
        dictionary = opened(entry)
        close(codes(dictionary, x(tmp_path)), found[name]["z"])
        close(written(dictionary, x(tmp_path)), found[name]["y"])


def test_what_saelens_saves_of_training_opens_here(tmp_path):
    found = peer(tmp_path, f"""
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        cfg = BatchTopKTrainingSAEConfig(d_in={D}, d_sae={N}, k={K}, device="cpu")
        cfg.metadata.hook_name, cfg.metadata.sae_lens_version = "blocks.0.hook_resid_post", "6.1.0"
        sae = BatchTopKTrainingSAE(cfg)
        fill(sae)
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.float64)
        sae.save_model(here / "saved" / "training")
        sae.save_inference_model(here / "saved" / "inference")
        from sae_lens import SAE
        done = SAE.load_from_disk(here / "saved" / "inference")
        keep("inference", z=done.encode(x), y=done(x))
    """)  # fmt: skip
    for entry in open_source(str(tmp_path / "saved")):
        close(written(opened(entry), x(tmp_path)), found["inference"]["y"])


def spec(kind: str, rule: dict, skip: bool = False, d_out: int = D, writes: int = 1) -> DictionarySpec:
    g = torch.Generator().manual_seed(3)
    arrays = {
        "W_enc": torch.randn(N, D, generator=g), "b_enc": torch.randn(N, generator=g),
        "W_dec": torch.randn(N, d_out * writes, generator=g), "sparsity.theta": torch.rand(N, generator=g),
    }  # fmt: skip
    arrays |= {} if kind == "clt" else {"b_dec": torch.randn(d_out, generator=g)}
    arrays |= {"W_skip": torch.randn(D, d_out, generator=g)} if skip else {}
    if rule["name"] != "threshold":
        del arrays["sparsity.theta"]
    sites = (Site("m.0.mlp", "in" if kind != "sae" else "out"),), tuple(Site(f"m.{i}.mlp") for i in range(writes))
    settings = {"sparsity": rule, "d_reads": [D], "d_writes": [d_out] * writes}
    return DictionarySpec(kind, *sites, settings, arrays)


THRESHOLD, TOPK, GROUPMAX = {"name": "threshold"}, {"name": "topk", "k": K}, {"name": "groupmax", "k": K}


def test_saelens_opens_what_is_written_here(tmp_path):
    made = {
        "a": spec("sae", THRESHOLD), "b": spec("sae", TOPK), "c": spec("transcoder", THRESHOLD, d_out=9),
        "d": spec("transcoder", THRESHOLD, skip=True),
    }  # fmt: skip
    for name, one in made.items():
        saelens.write(tmp_path / "saved" / name, one, ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"), {})
    found = peer(tmp_path, """
        from sae_lens import SAE
        for path in (here / "saved").iterdir():
            sae = SAE.load_from_disk(path)
            keep(path.name, z=sae.encode(x), y=sae(x))
    """)  # fmt: skip
    for entry in open_source(str(tmp_path / "saved")):
        close(codes(opened(entry), x(tmp_path)), found[entry.address]["z"])
        close(written(opened(entry), x(tmp_path)), found[entry.address]["y"])


def test_sparsify_both_ways(tmp_path):
    sparsify.write(tmp_path / "ours", spec("sae", TOPK), "layers.0.mlp", {})
    transcoder = spec("transcoder", TOPK, skip=True)
    sparsify.write(tmp_path / "ours", transcoder._replace(writes=(Site("m.0.mlp"),)), "layers.1.mlp", {})
    sparsify.write(tmp_path / "ours", spec("sae", GROUPMAX), "layers.2.mlp", {})
    found = peer(tmp_path, f"""
        from sparsify import SparseCoder, SparseCoderConfig
        for name, transcode, skip, rule in (("layers.0", False, False, "topk"), ("layers.1.mlp", True, True, "topk"),
                                            ("layers.2", False, False, "groupmax")):
            cfg = SparseCoderConfig(num_latents={N}, k={K}, transcode=transcode, skip_connection=skip, activation=rule)
            coder = SparseCoder({D}, cfg)
            fill(coder)
            coder.save_to_disk(here / "theirs" / name)
        for root in ("ours", "theirs"):
            for name, coder in SparseCoder.load_many(str(here / root), local=True).items():
                top = coder.encode(x)
                keep(f"{{root}}-{{name}}", y=coder(x).sae_out,
                     z=torch.zeros({ROWS}, {N}).scatter(1, top.top_indices, top.top_acts))
    """.replace('str(here / root), local=True)', 'str(here / root), local=True, layers=sorted(p.name for p in '
                '(here / root).iterdir() if p.is_dir()))'))  # fmt: skip
    for root in ("ours", "theirs"):
        entries = open_source(str(tmp_path / root))
        assert [e.rule["name"] for e in entries] == ["topk", "topk", "groupmax"]
        for entry in entries:
            close(codes(opened(entry), x(tmp_path)), found[f"{root}-{entry.address}"]["z"])
            close(written(opened(entry), x(tmp_path)), found[f"{root}-{entry.address}"]["y"])


def test_circuit_tracer_transcoders_both_ways(tmp_path):
    hooks = ("hook_mlp_in", "hook_mlp_out")
    for root in ("ours", "theirs"):
        circuit_tracer.write_config(tmp_path / root, "transcoder_set", hooks, 2, "m")
    for i in range(2):
        circuit_tracer.write_transcoder(tmp_path / "ours", i, spec("transcoder", THRESHOLD, skip=i == 1))
    found = peer(tmp_path, f"""
        import yaml
        from circuit_tracer.transcoder.single_layer_transcoder import *
        from circuit_tracer.transcoder.activation_functions import JumpReLU
        made = {{}}
        for i in range(2):
            act = JumpReLU(torch.rand({N})) if i else torch.nn.functional.relu
            made[i] = SingleLayerTranscoder({D}, {N}, act, i, skip_connection=bool(i), dtype=torch.float32)
            fill(made[i])
        TranscoderSet(made, "a", "b").to_safetensors(here / "theirs")
        for root in ("ours", "theirs"):
            config = yaml.safe_load(open(here / root / "config.yaml"))
            paths = {{i: str(here / root / p) for i, p in enumerate(config["transcoders"])}}
            found = load_transcoder_set(paths, "s", config["feature_input_hook"], config["feature_output_hook"])
            for i in range(2):
                keep(f"{{root}}-{{i}}", z=found[i].encode(x), y=found[i](x))
    """)  # fmt: skip
    for root in ("ours", "theirs"):
        for i, entry in enumerate(open_source(str(tmp_path / root))):
            close(codes(opened(entry), x(tmp_path)), found[f"{root}-{i}"]["z"])
            close(written(opened(entry), x(tmp_path)), found[f"{root}-{i}"]["y"])


def test_circuit_tracer_clt_both_ways(tmp_path):
    for root in ("ours", "theirs"):
        circuit_tracer.write_config(tmp_path / root, "cross_layer_transcoder", ("hook_mlp_in", "hook_mlp_out"), 3, "m")
    for i in range(3):
        bias = torch.randn(D, generator=torch.Generator().manual_seed(i))
        circuit_tracer.write_clt_layer(tmp_path / "ours", i, spec("clt", THRESHOLD, writes=3 - i), bias)
    found = peer(tmp_path, f"""
        from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
        made = CrossLayerTranscoder(3, {N}, {D}, "jump_relu", lazy_decoder=False, dtype=torch.float32)
        fill(made)
        made.to_safetensors(str(here / "theirs"))
        for root in ("ours", "theirs"):
            clt = load_clt(str(here / root), "hook_mlp_in", "hook_mlp_out", scan="s", dtype=torch.float32)
            z = torch.stack([clt.encode_layer(x, i) for i in range(3)])
            keep(root, z=z, y=clt.decode(z.to_sparse()))
    """)  # fmt: skip
    for root in ("ours", "theirs"):
        entries = open_source(str(tmp_path / root))
        assert [len(e.writes) for e in entries] == [3, 2, 1]
        total = torch.stack([e.bias() for e in entries])[:, None].expand(-1, ROWS, -1).clone()
        for i, entry in enumerate(entries):
            dictionary = opened(entry)
            close(codes(dictionary, x(tmp_path)), found[root]["z"][i])
            for j, site in enumerate(dictionary.writes):
                total[i + j] += dictionary.reconstruct({Site("x"): x(tmp_path)})[site]
        close(total, found[root]["y"])


def test_gemma_scope_2_as_circuit_tracer_reads_it(tmp_path):
    """Its loader of CLTs leaves out the last of the layers it is given, so that one is named twice there."""
    read, write = (f"model.layers.3.{n}_feedforward_layernorm.output" for n in ("pre", "post"))
    for name in ("plain", "affine"):
        files.gemma_scope_2(tmp_path / "one", f"transcoder/layer_3_{name}", read, write, skip=name == "affine")
        files.gemma_scope_2_clt(tmp_path / "clt" / name, skip=name == "affine")
    found = peer(tmp_path, """
        from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder
        from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
        for path in sorted((here / "one").rglob("params.safetensors")):
            coder = load_gemma_scope_2_transcoder(str(path), 3)
            keep(path.parent.name, z=coder.encode(x), y=coder(x))
        for name in ("plain", "affine"):
            (folder,) = {p.parent for p in (here / "clt" / name).rglob("params_layer_0.safetensors")}
            paths = {i: str(folder / f"params_layer_{min(i, 2)}.safetensors") for i in range(4)}
            clt = load_gemma_scope_2_clt(paths, dtype=torch.float32)
            z = torch.stack([clt.encode_layer(x, i) for i in range(3)])
            keep(name, z=z, y=clt.decode(z.to_sparse(), x.expand(3, -1, -1)))
    """)  # fmt: skip
    for entry in open_source(str(tmp_path / "one")):
        close(codes(opened(entry), x(tmp_path)), found[Path(entry.address).name]["z"])
        close(written(opened(entry), x(tmp_path)), found[Path(entry.address).name]["y"])
    for name in ("plain", "affine"):
        entries = open_source(str(tmp_path / "clt" / name))
        total = torch.stack([e.bias() for e in entries])[:, None].expand(-1, ROWS, -1).clone()
        for i, entry in enumerate(entries):
            close(codes(opened(entry), x(tmp_path)), found[name]["z"][i])
            for j, value in enumerate(opened(entry).reconstruct({Site("x"): x(tmp_path)}).values()):
                total[i + j] += value
        close(total, found[name]["y"])
