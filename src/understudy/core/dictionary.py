"""Dictionary: a sparse map from the sites it reads to the sites it writes. Group: those that are summed together.

An SAE reads and writes one site. A transcoder reads an MLP's input and writes its output. A crosscoder reads and writes
several sites; a cross-layer transcoder reads one and writes many. PCA, neurons, an attention head and a Python function
are dictionaries too, so whatever takes one takes its rivals.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.core.latents import Encoded, Latents
from understudy.core.records.errors import AmbiguousWrite, UnderstudyError
from understudy.core.site import Site
from understudy.core.sparsity import Also, Norms
from understudy.core.sparsity import Sparsity as Sparsity

Acts = Mapping[Site, Float[Tensor, "*places d"]]
"""Activations with the feature axis last: [batch, *places, d], or any leading axes for scope "place"."""


@dataclass(frozen=True)
class Context:
    """What a dictionary may know besides the activations it reads."""

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Keyword arguments of the network's forward."""
    mask: Bool[Tensor, " batch *places"] | None = None
    call: int = 0
    """Which call of a module that is called repeatedly."""
    clean: Acts | None = None
    """Activations of a clean pass, where the policy has one."""


NO_CONTEXT = Context()


class Linearised(NamedTuple):
    """On this input, `value[z] = sum over sites of rows[site][which[z]] . x[site] + bias[which[z]]`."""

    rows: dict[Site, Float[Tensor, "m d"]]
    bias: Float[Tensor, " m"]
    which: Int[Tensor, " Z"]


class DictionarySpec(NamedTuple):
    """A dictionary as plain data: what file formats and run folders hold."""

    kind: str
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    settings: dict[str, Any]
    """JSON values: sparsity rule, sizes, flags."""
    arrays: dict[str, Tensor]


class Dictionary(nn.Module, ABC):
    """The contract. `reconstruct = decode + rest`; everything in the units of the network's activations."""

    kind: ClassVar[str]
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    n_latents: int
    scope: Literal["place", "sequence"] = "place"
    """`sequence`: encoding mixes places, so it needs [batch, pos, d] and not loose rows."""
    is_oracle: bool = False
    """True if it reads what the replaced module itself computes, so that it cannot stand in for it alone."""

    @abstractmethod
    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded: ...

    @abstractmethod
    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        """What the latents write, without `rest`."""

    @abstractmethod
    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        """What one unit of each latent writes."""

    @abstractmethod
    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        """What is written whatever the latents are: biases, skip paths."""

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT) -> Linearised:
        """Rows that give each kept value from the activations, gates frozen at this input."""
        raise UnderstudyError(f"{type(self).__name__} has no linear form; use integrated gradients for its edges.")

    def restrict(self, ids: Int[Tensor, " m"]) -> "Dictionary":
        """Only some latents, at a cost that grows with them; ids keep their original numbers."""
        raise UnderstudyError(f"{type(self).__name__} cannot be restricted to some of its latents.")

    def thresholded(self, acts: Acts) -> "Dictionary":
        """The same dictionary with a threshold for each latent in place of competition between them."""
        return self

    def write(self, z: Latents, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        """What is put at each written site: `decode(z) + rest(acts)`."""
        rest = self.rest(acts)
        return {site: part + rest[site] for site, part in self.decode(z).items()}

    def reconstruct(self, acts: Acts, ctx: Context = NO_CONTEXT) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.write(self.encode(acts, ctx).z, acts)

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        """What training adds to the loss to keep the latents sparse; see `Sparsity.penalty`."""
        return {}

    def also(self, encoded: Encoded) -> list[Also]:
        """Other latents that training wants to rebuild the activations too; see `Sparsity.also`."""
        return []

    def before_step(self) -> None:
        """Called between backward and the optimiser's step."""

    def after_step(self) -> None:
        """Called after the optimiser's step: keep constraints exactly."""

    def spec(self) -> DictionarySpec:
        raise UnderstudyError(f"{type(self).__name__} is not made to be saved.")

    def __repr__(self) -> str:
        reads, writes = (", ".join(map(str, s)) for s in (self.reads, self.writes))
        return f"{type(self).__name__}(reads {reads}; writes {writes}; n_latents={self.n_latents})"


class Group(nn.Module):
    """Dictionaries that are summed at the sites they share, and trained together.

    One SAE is a group of one. A cross-layer transcoder is a group with a member a layer; the group then owns the one
    `b_dec` of each written site, and its members have none.
    """

    def __init__(self, members: Sequence[Dictionary], b_dec: Mapping[Site, Float[Tensor, " d"]] | None = None) -> None:
        super().__init__()
        self.members: Sequence[Dictionary] = nn.ModuleList(members)  # pyright: ignore[reportAttributeAccessIssue]
        self.reads = tuple(dict.fromkeys(s for m in members for s in m.reads))
        self.writes = tuple(dict.fromkeys(s for m in members for s in m.writes))
        self._b_sites = tuple(b_dec or ())
        self.b_dec = nn.ParameterList(nn.Parameter(b.clone()) for b in (b_dec or {}).values())

    @property
    def n_latents(self) -> int:
        return sum(m.n_latents for m in self.members)

    @property
    def name(self) -> str:
        """The written sites: a group's address within a run."""
        return "+".join(str(s) for s in self.writes)

    @property
    def biases(self) -> dict[Site, Tensor]:
        """The group's own `b_dec` by the site it is added to."""
        return dict(zip(self._b_sites, self.b_dec, strict=True))

    def writers(self, site: Site) -> list[Dictionary]:
        return [m for m in self.members if site in m.writes]

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> list[Encoded]:
        return [m.encode(acts, ctx) for m in self.members]

    def write(self, zs: Sequence[Latents], acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        """The sum of what the members write, plus the group's own b_dec."""
        out: dict[Site, Tensor] = {}
        for member, z in zip(self.members, zs, strict=True):
            for site, part in member.write(z, acts).items():
                out[site] = out[site] + part if site in out else part
        return self.add_bias(out)

    def add_bias(self, out: dict[Site, Tensor]) -> dict[Site, Tensor]:
        for site, bias in zip(self._b_sites, self.b_dec, strict=True):
            if site in out:
                out[site] = out[site] + bias
        return out

    def reconstruct(self, acts: Acts, ctx: Context = NO_CONTEXT) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.write([e.z for e in self.encode(acts, ctx)], acts)

    def before_step(self) -> None:
        for m in self.members:
            m.before_step()

    def after_step(self) -> None:
        for m in self.members:
            m.after_step()

    def thresholded(self, acts: Acts) -> "Group":
        return Group([m.thresholded(acts) for m in self.members], dict(zip(self._b_sites, self.b_dec, strict=True)))

    def __repr__(self) -> str:
        return f"Group({', '.join(map(repr, self.members))})"


def check_writes(groups: Sequence[Group]) -> None:
    """Raises AmbiguousWrite if two groups write one site: alternatives are compared one at a time, parts are summed
    inside one group."""
    owner: dict[Site, Group] = {}
    for group in groups:
        for site in group.writes:
            if site in owner:
                raise AmbiguousWrite(
                    f"two groups write {site}. Put dictionaries that are summed into one Group; run alternatives "
                    "(seeds, rivals) one at a time."
                )
            owner[site] = group
