"""Causal language models of transformers, whatever their architecture: sites, parts, loss in nats, KL, top-1."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.batch import Batch
from understudy.core.records.errors import BadInput
from understudy.networks.hf_stack import HFStack

CHUNK_BYTES = 1 << 26
"""Largest temporary copy of logits: 64 MiB."""
IGNORED = -100


class HFCausalLM(HFStack):
    """Any `AutoModelForCausalLM`, with its tokenizer where there is one.

    Inputs are `input_ids` [batch, pos] and optionally `attention_mask`; positions are counted from the first real
    token, so that left padding changes nothing. Targets are aligned with the output: `targets[:, p]` is the token that
    follows place p.
    """

    family = "causal language model"
    _places = (3, 13)

    def __init__(self, module: nn.Module, name: str, tokenizer: Any = None, opening: int | None = None) -> None:
        """opening: the id that every row of text should begin with, e.g. `tokenizer.bos_token_id`."""
        super().__init__(module, name)
        self.tokenizer, self.opening = tokenizer, opening
        text = getattr(self.config, "get_text_config", lambda: self.config)()
        self.vocab_size: int = text.vocab_size
        self._accepts = set(inspect.signature(module.forward).parameters)
        self._padding_is_safe = False
        self._generated = 0

    # -- inputs -----------------------------------------------------------------------------------------------------

    def example(self) -> Batch:
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.vocab_size, self._places, generator=g, device="cpu").to(self.device)
        return Batch({"input_ids": ids}, targets=next_tokens(ids))

    def forward(self, batch: Batch) -> Any:
        """A ModelOutput with `logits` [batch, pos, vocab].

        Raises BadInput for a padded batch if this architecture lets padding change the places behind it.
        """
        self.prepare(batch)
        return self._forward(batch)

    def prepare(self, batch: Batch) -> None:
        """The check of left padding, once. Padding on the right comes after all that is real and needs none."""
        mask = batch.inputs.get("attention_mask")
        if mask is None or self._padding_is_safe:
            return
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            self._check_padding()

    def _forward(self, batch: Batch) -> Any:
        inputs = dict(batch.inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and "position_ids" in self._accepts and "position_ids" not in inputs:
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if "use_cache" in self._accepts:
            inputs.setdefault("use_cache", False)  # pyright: ignore[reportArgumentType]
        return self.module(**inputs)

    @torch.no_grad()
    def _check_padding(self) -> None:
        ids, n_pad = self.example().inputs["input_ids"], 4
        padded = torch.cat([ids.new_zeros(len(ids), n_pad), ids], 1)
        mask = torch.ones_like(padded)
        mask[:, :n_pad] = 0
        plain = self._forward(Batch({"input_ids": ids})).logits.float()
        behind = self._forward(Batch({"input_ids": padded, "attention_mask": mask})).logits[:, n_pad:].float()
        half = torch.finfo(next(self.module.parameters()).dtype).eps > 1e-5
        if (plain - behind).abs().max() > (0.1 if half else 1e-3) * plain.std():
            raise BadInput(
                f"{self.name} ({type(self.module).__name__}) gives other outputs behind left padding. Pass sequences "
                "of one length without padding, or pad on the right and leave the padding out of mask and targets."
            )
        self._padding_is_safe = True

    # -- behaviour --------------------------------------------------------------------------------------------------

    def loss(self, output: Any, batch: Batch) -> Float[Tensor, "batch pos"]:
        """Cross-entropy of the next token in nats, in fp32, at places with a target; 0 elsewhere."""
        if batch.targets is None:
            raise BadInput(f"the loss of {self.name} needs targets: Batch(..., targets=next_tokens(input_ids)).")
        targets = batch.targets.to(output.logits.device)
        scored = targets != IGNORED
        logits = output.logits

        def nats(rows: slice) -> Tensor:
            chosen = logits[scored_at[0][rows], scored_at[1][rows]]
            return F.cross_entropy(chosen.float(), wanted[rows], reduction="none")

        scored_at, wanted = scored.nonzero(as_tuple=True), targets[scored]
        out = torch.zeros(targets.shape, device=logits.device)
        return out.index_put(scored_at, _chunked(nats, len(wanted), logits.shape[-1], logits.device))

    def divergence(self, a: Any, b: Any, batch: Batch) -> Float[Tensor, "batch pos"]:
        """KL(a || b) between next-token distributions in nats, in fp32."""
        p, q = a.logits.flatten(0, -2), b.logits.flatten(0, -2)

        def nats(rows: slice) -> Tensor:
            log_p, log_q = p[rows].float().log_softmax(-1), q[rows].float().log_softmax(-1)
            return (log_p.exp() * (log_p - log_q)).sum(-1)

        return _chunked(nats, len(p), p.shape[-1], p.device).reshape(a.logits.shape[:-1])

    def choice(self, output: Any) -> Int[Tensor, "batch pos"]:
        """The most likely next token."""
        return output.logits.argmax(-1)

    @property
    def max_context(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Longest sequence the network was made for, in tokens."""
        return int(getattr(self.config, "max_position_embeddings", None) or 1 << 20)

    def n_before(self, inputs: Mapping[str, Any]) -> int:
        cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
        if hasattr(cache, "get_seq_length"):
            return int(cache.get_seq_length())  # pyright: ignore[reportOptionalMemberAccess]
        ids = inputs.get("input_ids")
        if isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.dim() == 2:
            return mask.shape[1] - ids.shape[1]
        # Caches of recurrent states do not say how many places they hold.
        return self._generated if inputs.get("cache_params") is not None else 0

    @torch.no_grad()
    def generate(self, prompts: Int[Tensor, "batch pos"], n_new: int, seed: int) -> Int[Tensor, "batch all"]:
        """Prompts continued by exactly n_new tokens sampled at temperature 1 (an end of text is never sampled).

        The same seed gives the same random numbers to every call, so that two arms differ by what they compute.
        """
        prompts = prompts.to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self._counting():
            torch.manual_seed(seed)
            return self.module.generate(  # pyright: ignore[reportCallIssue]
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n_new,
                min_new_tokens=n_new, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0,
                pad_token_id=0,
            )  # fmt: skip

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Inside, forward passes are parts of one sequence, whose places are counted as they are run."""

        def count(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self._generated += kwargs["input_ids"].shape[1]

        self._generated = 0
        handle = self.module.register_forward_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._generated = 0

    @torch.no_grad()
    def logit_effects(self, directions: Float[Tensor, "m d"]) -> Float[Tensor, "m vocab"] | None:
        """What one unit of each direction in the stream adds to the logits through the direct path, centred.

        The final norm is taken as its gain alone (its scale depends on the input), so signs and ranks carry meaning,
        sizes only within one direction. None where no final norm or head of the stream's width is found.
        """
        head = self.module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        inside = tuple(f"{path}." for path in self._block_paths)
        norms = [
            m
            for name, m in self.module.named_modules()
            if "norm" in type(m).__name__.lower() and not name.startswith(inside) and hasattr(m, "weight")
        ]
        d = directions.shape[1]
        if head is None or head.weight.shape[1] != d or not norms or norms[-1].weight.shape != (d,):
            return None
        weight: Tensor = norms[-1].weight  # pyright: ignore[reportAssignmentType]
        gain = weight.float() + (1.0 if "Gemma" in type(norms[-1]).__name__ else 0.0)
        logits = (directions.float() * gain) @ head.weight.float().T
        return logits - logits.mean(-1, keepdim=True)


def next_tokens(ids: Int[Tensor, "batch pos"], mask: Tensor | None = None) -> Int[Tensor, "batch pos"]:
    """Targets of a batch of token ids: the following token, -100 at the last place and wherever the mask is False."""
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if mask is not None:
        real = mask.bool()
        targets[:, :-1] = torch.where(real[:, :-1] & real[:, 1:], targets[:, :-1], IGNORED)
    return targets


def _chunked(f: Callable[[slice], Tensor], n_rows: int, width: int, device: torch.device) -> Float[Tensor, " rows"]:
    step = max(1, CHUNK_BYTES // (4 * width))
    parts = [f(slice(i, i + step)) for i in range(0, n_rows, step)]
    return torch.cat(parts) if parts else torch.zeros(0, device=device)
