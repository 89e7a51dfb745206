"""Networks of true shape with random weights, dictionaries of true shape in the true format, and the commands on them.

python -m tests.workflows.real_sizes make gpt2 FOLDER      the network and its dictionaries, written to disk
python -m tests.workflows.real_sizes run gpt2 FOLDER TEXT  `sites`, `score` and `export`: seconds and peak GB of each
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """A network, and dictionaries for some of its layers."""

    config: Callable[[], Any]
    write: Callable[[Path, int], None]
    """(folder, layer): one dictionary."""
    layers: tuple[int, ...]
    n_latents: int
    d: int
    format: str
    """What `export` writes."""
    source: str = ""
    """What `score` is given below the folder of dictionaries."""
    dtype: torch.dtype = torch.bfloat16

    @property
    def one_gb(self) -> float:
        """A dictionary in memory, float32."""
        return 4 * self.n_latents * 2 * self.d / 1e9


def _gpt2() -> Any:
    import transformers

    return transformers.GPT2Config()


def _pythia() -> Any:
    import transformers

    return transformers.GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )


def _llama() -> Any:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, intermediate_size=8192, max_position_embeddings=131072, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip


def _gemma() -> Any:
    import transformers

    return transformers.Gemma2Config(
        vocab_size=256000, hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, intermediate_size=9216,
    )  # fmt: skip


def _tensors(n: int, d: int, seed: int) -> dict[str, torch.Tensor]:
    """W_enc [n, d] and W_dec [n, d] of one random matrix, latents that are seldom on."""
    W = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) / d**0.5
    return {"W_enc": W, "W_dec": W, "b_enc": torch.full((n,), -2.0), "b_dec": torch.zeros(d)}


def _saelens(n: int, d: int, hook: str, dtype: torch.dtype = torch.float32, **cfg: Any) -> Callable[[Path, int], None]:
    from tests.formats import files

    def write(folder: Path, layer: int) -> None:
        w = _tensors(n, d, layer)
        tensors = {k: v.to(dtype) for k, v in (w | {"W_enc": w["W_enc"].T}).items()}
        files.saelens(folder / f"{layer}", tensors, hook.format(layer), **cfg)

    return write


def _sparsify(n: int, d: int, k: int) -> Callable[[Path, int], None]:
    def write(folder: Path, layer: int) -> None:
        from safetensors.torch import save_file

        w = _tensors(n, d, layer)
        at = folder / f"layers.{layer}.mlp"
        at.mkdir(parents=True)
        names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
        save_file({names[key]: value.clone() for key, value in w.items()}, at / "sae.safetensors")
        cfg = {
            "activation": "topk",
            "expansion_factor": n // d,
            "num_latents": n,
            "k": k,
            "d_in": d,
            "transcode": False,
        }
        (at / "cfg.json").write_text(json.dumps(cfg))

    return write


def _gemma_scope(n: int, d: int) -> Callable[[Path, int], None]:
    def write(folder: Path, layer: int) -> None:
        import numpy as np

        w = _tensors(n, d, layer)
        at = folder / "gemma-scope-2b-pt-transcoders" / f"layer_{layer}" / "width_16k" / "average_l0_80"
        at.mkdir(parents=True)
        w |= {"W_enc": w["W_enc"].T, "threshold": torch.full((n,), 0.5)}
        np.savez(at / "params.npz", **{key: value.numpy() for key, value in w.items()})

    return write


CASES = {
    "gpt2": Case(_gpt2, _saelens(24_576, 768, "blocks.{}.hook_resid_pre"), (3, 7, 11), 24_576, 768, "saelens"),
    "pythia-160m": Case(_pythia, _sparsify(32_768, 768, 32), (2, 5, 8), 32_768, 768, "sparsify"),
    "llama-3.2-1b": Case(
        _llama, _saelens(131_072, 2048, "blocks.{}.hook_mlp_out", torch.bfloat16, architecture="topk", k=32), (4, 12),
        131_072, 2048, "saelens",
    ),
    "gemma-2-2b": Case(
        _gemma, _gemma_scope(16_384, 2304), (6, 12, 20), 16_384, 2304, "saelens",
        "/gemma-scope-2b-pt-transcoders/layer_*/width_16k/canonical",
    ),
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    """FOLDER/network and FOLDER/dictionaries."""
    import transformers

    from understudy.networks import open_network

    torch.manual_seed(0)
    case = CASES[name]
    model = transformers.AutoModelForCausalLM.from_config(case.config(), dtype=case.dtype)
    model.save_pretrained(folder / "network")
    open_network("demo").tokenizer.save_pretrained(folder / "network")
    del model
    for layer in case.layers:
        case.write(folder / "dictionaries", layer)


def run(name: str, folder: Path, text: str) -> dict[str, dict[str, float]]:
    """Seconds and peak GB of each command, all in this process, and what `score` and `export` say."""
    case = CASES[name]
    network = f"hf:{folder / 'network'}"
    source = f"{folder / 'dictionaries'}{case.source}"
    few = ["--data", f"text:{text}", "--context", "16", "--sequences", "2", "--rollouts", "0", "--fit-places", "64"]
    out, files = str(folder / "scored"), str(folder / "exported")
    held = ["--held-gb", str(1.1 * case.one_gb), "--network", network, "--device", "cpu"]
    return {
        "sites": measured(["sites", network]),
        "score": measured(["score", source, *held, *few, "--out", out]),
        "export": measured(["export", out, "--format", case.format, "--out", files]),
    }


def measured(args: list[str]) -> dict[str, Any]:
    """One command: seconds, peak GB of this process while it ran, its JSON."""
    from understudy.cli.main import main

    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # forgets the peak so far
    started, said = time.monotonic(), StringIO()
    with redirect_stdout(said):
        assert main([*args, "--json"]) == 0
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"s": time.monotonic() - started, "peak_gb": peak * 1024 / 1e9, "said": json.loads(said.getvalue())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    verb, which, where, *more = sys.argv[1:]
    if verb == "make":
        make(which, Path(where))
    else:
        print(json.dumps(run(which, Path(where), *more)))
