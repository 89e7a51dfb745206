"""Contexts of text: the tokens around a place, and what a latent does to the outputs directly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from understudy.core.batch import Batch
from understudy.core.dictionary import Dictionary
from understudy.core.network import Network
from understudy.core.records.scorecard import Context, Image, Token

BEFORE, AFTER, OUTPUTS = 16, 7, 8


class Texts:
    """A stretch of tokens around each place."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._ids: list[Tensor] = []
        self._mask: list[Tensor] = []
        self._text: dict[int, str] = {}

    def add(self, batch: Batch) -> None:
        ids = batch.inputs["input_ids"]
        self._ids.append(ids)
        self._mask.append(torch.ones_like(ids, dtype=torch.bool) if batch.mask is None else batch.mask)

    def counted(self, shape: tuple[int, ...]) -> Tensor:
        return torch.cat(self._mask).reshape(-1)

    def context(self, band: str, place: int, shape: tuple[int, ...], at: dict[int, float]) -> Context:
        (length,) = shape
        row, column = divmod(place, length)
        tokens, real = (parts[row // len(parts[0])][row % len(parts[0])] for parts in (self._ids, self._mask))
        first, last = max(0, column - BEFORE), min(length, column + AFTER + 1)
        shown = [c for c in range(first, last) if bool(real[c])]
        return Context(
            band=band,
            tokens=[Token(text=self._said(int(tokens[c])), activation=at.get(row * length + c, 0.0)) for c in shown],
            peak=shown.index(column),
        )

    def about(self, member: Dictionary, chosen: Sequence[int], where: Any, shape: tuple[int, ...]) -> list[dict]:
        """The outputs that each atom raises and lowers most through the direct path to the logits."""
        ids = torch.tensor(chosen, device=self.network.device, dtype=torch.long)
        effect = self.network.logit_effects(member.atoms(ids)[member.writes[0]])
        if effect is None:
            return [{"raises": [], "lowers": []} for _ in chosen]
        effect = effect.cpu()
        top, bottom = effect.topk(OUTPUTS, -1).indices.tolist(), (-effect).topk(OUTPUTS, -1).indices.tolist()
        return [
            {"raises": self._outputs(row, up), "lowers": self._outputs(row, down)}
            for row, up, down in zip(effect, top, bottom, strict=True)
        ]

    def _outputs(self, effect: Tensor, best: Sequence[int]) -> list[tuple[str, float]]:
        return [(self._said(i), float(effect[i])) for i in best]

    def images(self) -> list[Image]:
        return []

    def _said(self, token: int) -> str:
        """The text of a token, alone."""
        if token not in self._text:
            self._text[token] = self.network.tokenizer.decode([token])
        return self._text[token]
