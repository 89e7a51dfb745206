"""Refit: the kept latents' best decoder and bias on training data, in place of the one that shared its work with all.

A restricted dictionary still writes what its latents wrote in company; alone, another decoder serves better.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.core.dictionary import NO_CONTEXT, Acts, Context, Dictionary, Group
from understudy.core.latents import Encoded, Latents
from understudy.core.records.errors import TooLarge
from understudy.core.site import Site
from understudy.edits.restriction import check_places, kept_ids

ROWS = 2048
"""Places at once."""
FEW = 8
"""A gathered product costs about this many of a dense one."""
MOST_LATENTS = 8192
"""Kept latents of one group: their products are a square matrix in fp64 (512 MiB)."""


class Refitted(Dictionary):
    """A dictionary's own latents with another decoder."""

    kind = "refitted"

    def __init__(self, whole: Dictionary, tables: dict[Site, Float[Tensor, "m d"]]) -> None:
        """tables: at each written site one atom for each of `kept_ids(whole)`."""
        super().__init__()
        self.whole, self.ids = whole, kept_ids(whole)
        self.reads, self.writes, self.n_latents = whole.reads, whole.writes, whole.n_latents
        self.tables = tables

    def encode(self, acts: Acts, ctx: Context = NO_CONTEXT) -> Encoded:
        return self.whole.encode(acts, ctx)

    def decode(self, z: Latents) -> dict[Site, Float[Tensor, "*places d"]]:
        local = numbered(z, self.ids)
        return {site: local.decode(table) for site, table in self.tables.items()}

    def atoms(self, ids: Int[Tensor, " m"]) -> dict[Site, Float[Tensor, "m d"]]:
        where = torch.searchsorted(self.ids, ids)
        return {site: table[where] for site, table in self.tables.items()}

    def rest(self, acts: Acts) -> dict[Site, Float[Tensor, "*places d"]]:
        return self.whole.rest(acts)

    def linearise(self, acts: Acts, z: Latents, ctx: Context = NO_CONTEXT):
        return self.whole.linearise(acts, z, ctx)


def numbered(z: Latents, ids: Int[Tensor, " m"]) -> Latents:
    """The latents among `ids` (sorted), numbered by their index there."""
    inside = torch.isin(z.ids, ids)
    z = z if bool(inside.all()) else z.keep(inside, by="occurrence")
    return Latents(z.values, type(z.pattern)(torch.searchsorted(ids, z.ids), z.offsets, len(ids)), z.shape)


@torch.no_grad()
def refit(groups: Sequence[Group], sample: Acts, ridge: float = 1e-3) -> list[Group]:
    """New groups whose atoms and biases minimise, at each written site over `sample`,

        |what the network writes - what the group writes|^2 + ridge E[z^2] |change of the atoms|^2

    E[z^2] the mean over latents. The change is penalised, not the size, so that a latent which the sample hardly shows
    keeps the atom it had; the bias is free. groups: restricted ones. sample: rows [n, d] of training data at the sites
    they read and write. Raises TooLarge beyond 8192 kept latents a group.
    """
    check_places(groups, "a refit")
    return [_refitted(g, sample, ridge) for g in groups]


def _refitted(group: Group, sample: Acts, ridge: float) -> Group:
    tables: dict[Dictionary, dict[Site, Tensor]] = {m: {} for m in group.members}
    biases = dict(group.biases)
    solved: dict[tuple[int, ...], list[Site]] = {}
    for site in group.writes:
        solved.setdefault(tuple(id(m) for m in group.writers(site)), []).append(site)
    for sites in solved.values():
        writers = group.writers(sites[0])
        sizes = [len(kept_ids(m)) for m in writers]
        change, shift = _solve(group, writers, sites, sample, ridge)
        for site, table, bias in zip(sites, change, shift, strict=True):
            for member, part in zip(writers, table.split(sizes), strict=True):
                tables[member][site] = member.atoms(kept_ids(member))[site] + part
            biases[site] = biases[site] + bias if site in biases else bias
    return Group([Refitted(m, tables[m]) for m in group.members], biases)


def _solve(
    group: Group, writers: list[Dictionary], sites: list[Site], sample: Acts, ridge: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The change of the writers' atoms, one below the other, and of the bias, for each site."""
    n_latents = sum(len(kept_ids(m)) for m in writers)
    if n_latents > MOST_LATENTS:
        raise TooLarge(f"a refit solves for {n_latents} latents at once; {MOST_LATENTS} are the most. Keep fewer.")
    widths = [sample[s].shape[-1] for s in sites]
    like = sample[sites[0]].new_zeros(0, dtype=torch.float64)
    gram = like.new_zeros(n_latents + 1, n_latents + 1)
    cross = like.new_zeros(n_latents + 1, sum(widths))
    n = len(sample[sites[0]])
    for i in range(0, n, ROWS):
        acts = {s: x[i : i + ROWS] for s, x in sample.items()}
        found = {m: m.encode(acts).z for m in group.members}
        written = group.write([found[m] for m in group.members], acts)
        missed = torch.cat([acts[s] - written[s] for s in sites], -1)
        z = [numbered(found[m], kept_ids(m)) for m in writers]
        columns = torch.cat([*(part.dense() for part in z), missed.new_ones(len(missed), 1)], 1)
        gram += _products(z, columns)
        cross += _products(z, missed)
    latents = gram.diagonal()[:n_latents]
    latents.add_(ridge * latents.mean() + 1e-9 * n if n_latents else 0.0)
    solution = torch.linalg.solve(gram, cross).float()
    return list(solution[:n_latents].split(widths, 1)), list(solution[n_latents].split(widths))


def _products(zs: list[Latents], table: Float[Tensor, "n w"]) -> Float[Tensor, "K_plus_1 w"]:
    """Every latent's column, and a column of ones, times the table: sparsely where latents are few."""
    parts = []
    for z in zs:
        few = len(z.values) * FEW < len(table) * z.n_latents
        parts.append(z.pattern.scatter_sum(z.values, table) if few else z.dense().T @ table)
    return torch.cat([*parts, table.sum(0, keepdim=True)]).double()
