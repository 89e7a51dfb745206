"""GRU language models: a stack of recurrences written out step by step, so that gates and states are sites.

A block adds to the stream what a recurrence makes of its norm; a readout tied to the embedding gives the logits. The
cell is that of `torch.nn.GRU` (Cho et al. 2014, with the reset gate behind the product, as cuDNN has it) and is called
once for each token. What a hook makes of its output is what the next step reads: a replacement inside the recurrence
acts on all later places.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.core.network import Calls, NamedSite, Part
from understudy.core.records.errors import BadWeights
from understudy.core.site import Site
from understudy.networks.hf_causal_lm import HFCausalLM

MODEL_TYPE = "understudy-gru"


@dataclass(frozen=True)
class GRUConfig:
    """Sizes of a GRU language model, named as transformers names them."""

    vocab_size: int
    hidden_size: int
    """Width of the stream and of the embedding."""
    state_size: int
    """Width of each recurrence's state."""
    num_hidden_layers: int
    max_position_embeddings: int = 256
    """Places of a sequence in training; the network itself takes any number."""
    eos_token_id: int | None = None
    """The separator of documents, which `generate` never samples."""


class Past(NamedTuple):
    """What a pass leaves for the next one."""

    states: tuple[Float[Tensor, "batch state"], ...]
    """The last state of every block."""
    n: int
    """Places read so far."""


class Output(NamedTuple):
    logits: Float[Tensor, "batch pos vocab"]
    past: Past


class GRUCell(nn.Module):
    """One step: [its input, its state] side by side -> the next state.

    Gates and candidate are modules of their own, so that each is a site: `reset`, `update`, `candidate`.
    """

    def __init__(self, d_in: int, d: int) -> None:
        super().__init__()
        self.d_in = d_in
        self.input, self.hidden = nn.Linear(d_in, 3 * d), nn.Linear(d, 3 * d)
        self.reset, self.update, self.candidate = nn.Sigmoid(), nn.Sigmoid(), nn.Tanh()

    def forward(self, joint: Float[Tensor, "batch d_in+d"]) -> Float[Tensor, "batch d"]:
        x, h = joint[:, : self.d_in], joint[:, self.d_in :]
        x_reset, x_update, x_candidate = self.input(x).chunk(3, -1)
        h_reset, h_update, h_candidate = self.hidden(h).chunk(3, -1)
        reset, update = self.reset(x_reset + h_reset), self.update(x_update + h_update)
        candidate = self.candidate(x_candidate + reset * h_candidate)
        return (1 - update) * candidate + update * h


class Recurrence(nn.Module):
    """The cell at every place in turn, and a Linear from its states back to the stream."""

    def __init__(self, d: int, d_state: int) -> None:
        super().__init__()
        self.cell, self.out = GRUCell(d, d_state), nn.Linear(d_state, d, bias=False)

    def forward(
        self, x: Float[Tensor, "batch pos d"], state: Float[Tensor, "batch state"], real: Tensor | None
    ) -> tuple[Float[Tensor, "batch pos d"], Float[Tensor, "batch state"]]:
        """real: False at padding, which leaves the state as it is."""
        states = []
        for p, step in enumerate(x.unbind(1)):
            new = self.cell(torch.cat([step, state], -1))
            state = new if real is None else torch.where(real[:, p, None], new, state)
            states.append(state)
        return self.out(torch.stack(states, 1)), state


class Block(nn.Module):
    """stream + recurrence(norm(stream))"""

    def __init__(self, d: int, d_state: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(d, eps=1e-6), Recurrence(d, d_state)

    def forward(self, x: Tensor, state: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        change, state = self.mixer(self.norm(x), state, real)
        return x + change, state


class GRU(nn.Module):
    """Token ids [batch, pos] to logits [batch, pos, vocab], and the states to carry on from."""

    def __init__(self, config: GRUConfig) -> None:
        super().__init__()
        self.config, d = config, config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(d, config.state_size) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(d, eps=1e-6)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(
        self, input_ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None, past: Past | None = None
    ) -> Output:
        """attention_mask: 0 at padding on the left. past: what an earlier pass over the places before returned."""
        x = self.embed(input_ids)
        nothing = x.new_zeros(len(x), self.config.state_size)
        states = [nothing] * len(self.layers) if past is None else past.states
        real = None if attention_mask is None else attention_mask.bool()
        after = []
        for block, state in zip(self.layers, states, strict=True):
            x, state = block(x, state, real)
            after.append(state)
        n = (0 if past is None else past.n) + input_ids.shape[1]
        return Output(self.head(self.norm(x)), Past(tuple(after), n))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


class GRULanguageModel(HFCausalLM):
    """A `GRU` as a network: loss, divergence and inputs are those of other causal language models.

    Sites of block i: `mixer_in.i` and `mixer_out.i`, what the recurrence reads and adds to the stream; `resid.i`; and,
    once for each token, `cell_in.i` (input and state side by side), `reset.i`, `update.i`, `candidate.i` and `state.i`.
    What is written at `state.i` is carried on to later places. Parts: `mixer.i`, the recurrence as a whole, and
    `cell.i`, one step of it.
    """

    family = "GRU language model"

    def axes(self, site: Site, value: Tensor) -> tuple[tuple[str, ...], Calls]:
        if ".mixer.cell" in site.module and value.dim() == 2 and value.shape[0] == self._places[0]:
            return ("batch", "d"), "time"
        return super().axes(site, value)

    def named_sites(self) -> tuple[NamedSite, ...]:
        names = {"embed": Site("layers.0", "in")}
        for i in range(self.config.num_hidden_layers):
            mixer = f"layers.{i}.mixer"
            names |= {f"mixer_in.{i}": Site(mixer, "in"), f"cell_in.{i}": Site(f"{mixer}.cell", "in")}
            names |= {f"{gate}.{i}": Site(f"{mixer}.cell.{gate}") for gate in ("reset", "update", "candidate")}
            names |= {
                f"state.{i}": Site(f"{mixer}.cell"),
                f"mixer_out.{i}": Site(mixer),
                f"resid.{i}": Site(f"layers.{i}"),
            }
        self.probe(names.values())
        return tuple(NamedSite(name, site, self.layout(site)) for name, site in names.items())

    def parts(self) -> tuple[Part, ...]:
        paths = [f"layers.{i}.mixer" for i in range(self.config.num_hidden_layers)]
        whole = [Part(f"mixer.{i}", Site(path, "in"), Site(path)) for i, path in enumerate(paths)]
        steps = [Part(f"cell.{i}", Site(f"{path}.cell", "in"), Site(f"{path}.cell")) for i, path in enumerate(paths)]
        return tuple(part for pair in zip(whole, steps, strict=True) for part in pair)

    def n_before(self, inputs: Mapping[str, Any]) -> int:
        past = inputs.get("past")
        return 0 if past is None else past.n

    @torch.no_grad()
    def generate(self, prompts: Int[Tensor, "batch pos"], n_new: int, seed: int) -> Int[Tensor, "batch all"]:
        """Prompts continued by exactly n_new tokens sampled at temperature 1 (an end of text is never sampled).

        States are carried on, so each token costs one step. The same seed gives the same random numbers to every call.
        """
        found = [prompts.to(self.device)]
        never = self.config.eos_token_id
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            past = None
            for _ in range(n_new):
                logits, past = self.module(input_ids=found[-1], past=past)
                last = logits[:, -1].float()
                if never is not None:
                    last[:, never] = -torch.inf
                found.append(torch.multinomial(last.softmax(-1), 1))
        return torch.cat(found, 1)


def is_gru(folder: Path) -> bool:
    """Whether a folder holds one of our GRUs."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):  # who opens it as another model says what is wrong with it
        return False
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def save_gru(module: GRU, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json and model.safetensors; the tied readout is kept once."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(dtype).contiguous() for k, v in module.state_dict().items() if k != "head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": MODEL_TYPE, "dtype": str(dtype).removeprefix("torch.")} | asdict(module.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def open_gru(folder: Path, name: str, dtype: torch.dtype | Literal["auto"] = torch.float32) -> GRULanguageModel:
    """The GRU that `save_gru` wrote, with the tokenizer that lies beside it, if one does.

    dtype: of its parameters; auto: as they were saved. Raises BadWeights for weights or sizes that do not fit or are
    not finite. Sizes are held against the weights' shapes before anything of that size is made.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    written, file = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    try:
        with safe_open(file, framework="pt") as header:
            shapes = {k: tuple(header.get_slice(k).get_shape()) for k in header.keys()}  # noqa: SIM118
        config = _config(written, shapes, f"{name}: config.json and the weights in {folder} differ")
        with torch.device("meta"):
            module = GRU(config)
        state = load_file(file)
        missing, unknown = module.load_state_dict(state, strict=False, assign=True)
    except (SafetensorError, OSError, TypeError, RuntimeError) as error:
        raise BadWeights(f"{name}: the GRU in {folder} cannot be read: {str(error).splitlines()[-1].strip()}") from None
    if wrong := [*unknown, *(k for k in missing if k != "head.weight")]:
        raise BadWeights(f"{name}: config.json and the weights in {folder} differ, e.g. by {wrong[0]}.")
    if bad := [k for k, v in state.items() if not v.isfinite().all()]:
        raise BadWeights(f"{name}: {bad[0]} holds values that are not finite.")
    module.head.weight = module.embed.weight
    kept = state["embed.weight"].dtype if dtype == "auto" else dtype
    return GRULanguageModel(module.to(kept), name, _tokenizer(folder))


def _config(written: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], differ: str) -> GRUConfig:
    """The sizes that config.json says, where the weights have them. Raises BadWeights with both where they do not."""
    said = {k: written[k] for k in GRUConfig.__dataclass_fields__ if k in written}
    if odd := {k: v for k, v in said.items() if type(v) is not int and not (k == "eos_token_id" and v is None)}:
        raise BadWeights(
            f"{differ}: {' and '.join(f'{k} is {v!r}' for k, v in odd.items())}; whole numbers are wanted."
        )
    config = GRUConfig(**said)
    embed, state = (shapes.get(k, ()) for k in ("embed.weight", "layers.0.mixer.cell.hidden.weight"))
    if len(embed) != 2 or len(state) != 2:
        raise BadWeights(f"{differ}: the weights are those of no GRU, or of none with a layer.")
    layers = {m[1] for k in shapes if (m := re.match(r"layers\.(\d+)\.", k))}
    found = {"vocab_size": embed[0], "hidden_size": embed[1], "state_size": state[1]}
    for key, real in (found | {"num_hidden_layers": len(layers)}).items():
        if getattr(config, key) != real:
            raise BadWeights(f"{differ}: {key} is {getattr(config, key):,} in the one and {real:,} in the other.")
    if config.max_position_embeddings < 1 or not 0 <= (config.eos_token_id or 0) < config.vocab_size:
        raise BadWeights(
            f"{differ}: a context of {config.max_position_embeddings:,} places and an end of text that is token "
            f"{config.eos_token_id} cannot be, of {config.vocab_size:,} tokens."
        )
    return config


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
