"""Dictionaries whose weights stay in their files: each is read when it is used, and the oldest is let go."""

from collections import OrderedDict
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, DictionarySpec, Linearised
from understudy.core.latents import Encoded, Latents
from understudy.core.linear import LinearDictionary
from understudy.core.site import Site
from understudy.formats import Fitted
from understudy.workflows._runs import from_spec


class Held:
    """Dictionaries in memory, at most `limit` bytes of them or one, the longest unused let go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: OrderedDict[str, LinearDictionary] = OrderedDict()
        self.n_read = 0
        """How often weights were read from a file."""

    def get(self, fitted: Fitted, device: torch.device) -> LinearDictionary:
        key = fitted.entry.address
        if key not in self.open:
            size = _bytes(fitted)
            while self.open and sum(map(_held, self.open.values())) + size > self.limit:
                self.open.popitem(last=False)
            self.open[key] = from_spec(fitted.spec())
            self.n_read += 1
        self.open.move_to_end(key)
        return self.open[key].to(device)


def _bytes(fitted: Fitted) -> int:
    e = fitted.entry
    return 4 * e.n_latents * (e.d_in + e.d_out * len(e.writes))


def _held(dictionary: LinearDictionary) -> int:
    return sum(v.numel() * v.element_size() for v in dictionary.state_dict().values())


class Streamed(Dictionary):
    """An entry of a file as a dictionary. Its contract is that of the `LinearDictionary` which `whole()` reads."""

    scope: Literal["place", "sequence"] = "place"

    def __init__(self, fitted: Fitted, held: Held) -> None:
        super().__init__()
        self.kind = fitted.entry.kind  # pyright: ignore[reportAttributeAccessIssue]
        self.reads, self.writes, self.n_latents = fitted.reads, fitted.writes, fitted.entry.n_latents
        self.fitted, self.held = fitted, held

    def whole(self, device: torch.device | str = "cpu") -> LinearDictionary:
        """The dictionary with its weights in memory, as long as there is room. Raises BadWeights."""
        return self.held.get(self.fitted, torch.device(device))

    def _on(self, acts: Acts) -> LinearDictionary:
        return self.whole(next(iter(acts.values())).device)

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        return self._on(acts).encode(acts, ctx)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.whole(z.values.device).decode(z)

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        return self.whole(ids.device).atoms(ids)

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return self._on(acts).rest(acts)

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        return self._on(acts).linearise(acts, z, ctx)

    def restrict(self, ids: Int[Tensor, " m"]) -> Dictionary:
        return self.whole(ids.device).restrict(ids)

    def thresholded(self, acts: Acts) -> Dictionary:
        return self._on(acts).thresholded(acts)

    def spec(self) -> DictionarySpec:
        return self.whole().spec()
