"""Parameter components: a Linear's weight as a sum of rank-1 parts, of which a place needs only a few (Bushnaq et al.
2025, "Stochastic Parameter Decomposition", arXiv:2506.20790).

    x W^T = sum over c of (x . V_c) U_c + x delta        delta = W^T - V^T U

A component is a latent: its pre-activation is x . V_c (a row of W_enc), its value that times its gate, its atom U_c (a
row of W_dec). What the components' sum misses of the weight is W_skip, the delta component, and b_dec is the Linear's
own bias; so all gates open is the network itself. Everything is in raw units."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, Group, Linearised
from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.network import Network
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import unit_rows


class Components(LinearDictionary):
    """Reads a Linear's input and writes its output. Those of all Linears asked for are trained as one group."""

    kind: ClassVar[str] = "components"
    spans: ClassVar[Spans] = "linears"
    fixed: ClassVar[Mapping[str, Any]] = {
        "sparsity": "causal_importance", "objective": "stochastic_masks", "dead": "none",
    }  # fmt: skip
    usual: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "k": 1}

    @classmethod
    def begin(
        cls,
        network: Network,
        reads: Sequence[Site],
        writes: Sequence[Site],
        n_latents: int,
        sparsity: Sparsity,
        sample: Acts,
        seed: int,
    ) -> Self:
        """Random unit V_c, and the shortest U_c with which the parts sum to the weight, so that the delta component
        starts at 0 where there are enough parts. Ours: the paper's code takes random U_c too, scaled by their overlap
        with the weight, which was measured to let more features share a component (docs/log.md).

        Raises BadInput for a Linear that is called more than once.
        """
        path = reads[0].module
        calls = network.layout(reads[0]).n_calls
        if calls != 1:
            raise BadInput(f"{path} is called {calls} times in one forward pass: its components would have no place.")
        weight, bias = linear_map(network.module.get_submodule(path))
        generator = torch.Generator().manual_seed(seed)
        V = unit_rows(n_latents, len(weight), generator)
        arrays = {"W_enc": V, "b_enc": torch.zeros(n_latents)}
        # Directions that the V_c hardly span are left to the delta component: their U_c would be very long.
        arrays["W_dec"] = torch.linalg.pinv(V.T, rtol=0.1) @ weight
        arrays["W_skip"] = weight - V.T @ arrays["W_dec"]
        if bias is not None:
            arrays["b_dec"] = bias
        sparsity.draw(generator)  # pyright: ignore[reportCallIssue]
        made = cls({reads[0]: weight.shape[0]}, {writes[0]: weight.shape[1]}, sparsity, arrays)
        made._learn(weight)
        return made

    weight: Tensor
    """In training: the Linear's weight [d_in, d_out], of which W_skip is the rest."""

    def _learn(self, weight: Float[Tensor, "d_in d_out"]) -> None:
        """Only V, U and the gates are learned: what is not is a buffer."""
        for name in ("b_enc", "b_dec", "W_skip"):
            value = getattr(self, name)
            if value is not None:
                delattr(self, name)
                self.register_buffer(name, value.detach())
        self.register_buffer("weight", weight, persistent=False)

    def delta(self) -> Float[Tensor, "d_in d_out"]:
        """What the components' sum misses of the weight, with gradients. In training only."""
        return self.weight - self.W_enc.T @ self.W_dec

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        assert self.W_skip is not None
        self.W_skip.copy_(self.delta())

    def importances(self, pre: Pre) -> tuple[Float[Tensor, "R L"], Float[Tensor, ""]]:
        """How far the gate of every component is open at every row, in [0, 1], and what open gates cost."""
        return self.sparsity.importances(pre)  # pyright: ignore[reportCallIssue]

    def masked(self, mask: Float[Tensor, "R L"], delta_mask: Float[Tensor, " R"]) -> "MaskedComponents":
        """The Linear with component c let through by mask[row, c], and the delta component by delta_mask[row]."""
        return MaskedComponents(self, mask, delta_mask)

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        """Gates as they are on this input."""
        rows, bias, index = super().linearise(acts, z, ctx)
        if z.gate is None:
            return Linearised(rows, bias, index)
        own = {site: row[index] * z.gate[:, None] for site, row in rows.items()}
        return Linearised(own, bias[index] * z.gate, torch.arange(len(index), device=index.device))


class TiedComponents(Components):
    """Components of Linears that are each other's transposes: reading directions of one are writing directions of the
    other, under gates of their own. What the paper's code does in toy models of superposition, without which a third to
    a half of seeds there let two features share a component."""

    kind: ClassVar[str] = "tied_components"

    @classmethod
    def group(cls, members: Sequence[LinearDictionary], sample: Acts) -> Group:
        """Raises BadInput if a member's weight is the transpose of no other's."""
        alone = list(members)
        while alone:
            one = alone.pop(0)
            assert isinstance(one, Components)
            other = next((m for m in alone if isinstance(m, Components) and _transposed(one, m)), None)
            if other is None:
                raise BadInput(
                    f"{one.reads[0].module} has the transpose of no other Linear here as its weight: it has nothing to "
                    "be tied to. Use --kind components."
                )
            alone.remove(other)
            other.W_enc, other.W_dec = one.W_dec, one.W_enc
            other.after_step()
        return Group(members)


def _transposed(one: Components, other: Components) -> bool:
    return one.weight.shape == other.weight.T.shape and torch.equal(one.weight, other.weight.T)


class MaskedComponents(Dictionary):
    """A Linear under given masks. It has no latents: all of it is what is written whatever they are."""

    kind: ClassVar[str] = "masked_components"

    def __init__(self, of: Components, mask: Float[Tensor, "R L"], delta_mask: Float[Tensor, " R"]) -> None:
        super().__init__()
        self.reads, self.writes, self.n_latents = of.reads, of.writes, 0
        self.of, self.mask, self.delta_mask = of, mask, delta_mask

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        x = acts[self.reads[0]]
        return Encoded(Latents.none(tuple(x.shape[:-1]), x), self.of.pre(acts))

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        return {self.writes[0]: z.values.new_zeros(*z.shape, self.of.W_dec.shape[1])}

    def atoms(self, ids: Tensor) -> dict[Site, Float[Tensor, "m d"]]:
        return {self.writes[0]: self.of.W_dec[ids]}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        x = acts[self.reads[0]]
        rows = x.reshape(-1, x.shape[-1])
        y = (rows @ self.of.W_enc.T * self.mask) @ self.of.W_dec + self.delta_mask[:, None] * (rows @ self.of.delta())
        y = y if self.of.b_dec is None else y + self.of.b_dec
        return {self.writes[0]: y.reshape(*x.shape[:-1], -1)}


def is_linear(module: nn.Module) -> bool:
    """True for what has components: a Linear, or transformers' Conv1D, which is one with its weight transposed."""
    return isinstance(module, nn.Linear) or (
        type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.dim() == 2  # pyright: ignore[reportCallIssue]
    )  # fmt: skip


def linear_map(module: nn.Module) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"] | None]:
    """What a Linear multiplies its input by, and what it adds. Raises BadInput for other modules."""
    if not is_linear(module):
        raise BadInput(f"a {type(module).__name__} has no components: they are parts of a Linear's weight.")
    weight, bias = module.get_parameter("weight").detach().float(), module.bias
    weight = weight.T if isinstance(module, nn.Linear) else weight
    return weight.clone(memory_format=torch.contiguous_format), bias.detach().float().clone() if isinstance(
        bias, Tensor
    ) else None
