"""Are the true directions found? A dictionary trained on each organism, beside dictionaries that know nothing."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.baselines import PCA
from understudy.core.dictionary import Dictionary
from understudy.core.linear import LinearDictionary
from understudy.core.names import find_parts, find_sites
from understudy.core.network import Network
from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.progress import Progress
from understudy.core.site import Site
from understudy.core.world import Truth, World, mean, share
from understudy.dictionaries import SAE, Transcoder
from understudy.organisms.two_codes import CHANCE, which_code
from understudy.sparsity import Identity, TopK
from understudy.workflows._opening import open_world
from understudy.workflows.train import TrainConfig, train

KINDS = {"sae": SAE, "transcoder": Transcoder}
LOOKED_AT = 64
"""Held-out sequences on which a latent must fire to be alive, and that starting points are made from."""
NULL_DRAWS, NULL_SEED = 50, 20_260_101
NEAR = 0.9
"""Least |cosine| at which a latent names a feature. In a few dimensions chance is near too: see the random row."""
BANDS = {"rare": (0.0, 0.01), "middle": (0.01, 0.05), "frequent": (0.05, 1.01)}


class Paper(NamedTuple):
    """One task of an exam."""

    organism: str
    kind: Literal["sae", "transcoder"]
    sites: str
    k: int
    tokens: int
    twin: bool = False
    """Train on the negative twin, score against the organism's truth: nothing must be found."""
    objective: str = "local"

    @property
    def method(self) -> str:
        return self.kind if self.objective == "local" else f"{self.kind}, {self.objective}"


QUICK = (
    Paper("superposition_5_2", "sae", "hidden", 1, 500_000),
    Paper("superposition_40_10", "sae", "hidden", 2, 1_000_000),
    Paper("synthetic", "sae", "act", 6, 2_000_000),
    Paper("synthetic", "sae", "act", 6, 1_000_000, twin=True),
    Paper("synthetic", "transcoder", "mlp.0", 6, 2_000_000),
    Paper("two_codes", "sae", "act", 4, 1_000_000),
    Paper("two_codes", "transcoder", "mlp.0", 4, 1_000_000),
    Paper("two_codes_saturating", "sae", "act", 4, 1_000_000),
    Paper("two_codes_saturating", "sae", "act", 4, 1_000_000, objective="kl"),
    Paper("sort", "sae", "resid.0", 4, 500_000),
    Paper("residual_mlps", "sae", "embed", 2, 300_000),
)
FULL = (
    *QUICK,
    Paper("histogram", "sae", "resid.0", 4, 500_000),
    Paper("fraction_previous", "sae", "resid.0", 4, 500_000),
    Paper("parentheses", "sae", "resid.1", 5, 500_000),
    Paper("induction", "sae", "resid.0", 3, 500_000),
    Paper("new_reasons", "sae", "act", 6, 1_000_000),
    Paper("universal_and", "transcoder", "mlp.0", 8, 1_000_000),
)


class ExamRow(Record):
    """One method on one organism."""

    organism: str
    """`-twin`: trained on the negative twin, scored against the organism's truth."""
    method: str
    """sae, transcoder: trained; `, kl`: end to end. untrained: before its first step. random: directions. pca."""
    site: str
    n_latents: int
    alive: int
    truth_recovered: Metric
    """Mean over features of (score - null) / (1 - null); 0: no better than random directions, 1: the truth."""
    precision: Metric
    """Share of the living latents within |cosine| 0.9 of a true feature."""
    by_frequency: dict[str, Metric]
    """truth_recovered of the features that are on at under 1%, 1 to 5%, over 5% of places."""


def sit(paper: Paper, seed: int, progress: Progress) -> list[ExamRow]:
    world = open_world(paper.organism, seed, progress)
    read, write = _sites(paper, world.network)
    target = _Target(world, read, seed)
    studied = world.negative if paper.twin else world
    assert studied is not None
    n_latents = len(target.directions)
    sample = _rows(studied, [read, write])
    start = KINDS[paper.kind].start((read,), (write,), n_latents, TopK(paper.k), sample, seed)
    generator = torch.Generator().manual_seed(NULL_SEED + 1 + seed)
    directions = torch.randn(n_latents, sample[read].shape[1], generator=generator)
    trained = _train(paper, studied, n_latents, seed, progress)
    everything = torch.ones(n_latents, dtype=torch.bool)
    name = f"{paper.organism}-twin" if paper.twin else paper.organism
    pca = PCA.fit(read, sample, n_latents, Identity())
    methods = [
        (paper.method, _reading(trained), _alive(trained, sample)),
        ("untrained", _reading(start), _alive(start, sample)),
        ("random", directions, everything),
        ("pca", _reading(pca), everything[: pca.n_latents]),
    ]
    return [target.row(name, method, read, vectors, alive) for method, vectors, alive in methods]


def _sites(paper: Paper, network: Network) -> tuple[Site, Site]:
    """What the dictionary reads and writes."""
    if paper.kind == "sae":
        (site,) = find_sites(network, paper.sites)
        return site, site
    (part,) = find_parts(network, paper.sites)
    return part.read, part.write


def _train(paper: Paper, world: World, n_latents: int, seed: int, progress: Progress) -> Dictionary:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            kind=paper.kind, sites=paper.sites, n_latents=n_latents, k=paper.k, tokens=paper.tokens, batch=1024,
            objective=paper.objective, local_weight=None if paper.objective == "local" else 0.0, seed=seed,
            out=Path(folder) / "run", checkpoint_s=3600,
        )  # fmt: skip
        return train(config, progress, world.network).groups[0].members[0]


def _rows(world: World, sites: Sequence[Site]) -> dict[Site, Tensor]:
    """Held-out rows at some sites."""
    batch = world.data["held_out"].batch(slice(0, LOOKED_AT))
    return {s: v.reshape(-1, v.shape[-1]) for s, v in world.network.record(batch, sites).items()}


def _reading(dictionary: Dictionary) -> Float[Tensor, "m d"]:
    """A latent's direction at the site it reads: what it writes there, or else what its encoder looks for."""
    read = dictionary.reads[0]
    if read in dictionary.writes:
        return dictionary.atoms(torch.arange(dictionary.n_latents))[read].detach()
    assert isinstance(dictionary, LinearDictionary)
    return dictionary.W_enc.detach()


@torch.no_grad()
def _alive(dictionary: Dictionary, sample: dict[Site, Tensor]) -> Bool[Tensor, " m"]:
    return dictionary.encode(sample).z.fires() > 0


class _Target:
    """The true directions at a site, what random directions score on them, and how rows are marked."""

    def __init__(self, world: World, site: Site, seed: int) -> None:
        self.truth, self.seed = world.truth, seed
        self.directions = _unit(world.truth.directions(site))
        self.names = [f.name for f in world.truth.at(site)]
        self.planes = _planes(world.truth, self.names)
        generator = torch.Generator().manual_seed(NULL_SEED)
        n, d = self.directions.shape
        draws = [self.nearest(torch.randn(n, d, generator=generator))[0] for _ in range(NULL_DRAWS)]
        self.null = torch.stack(draws).mean(0)

    def nearest(self, vectors: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
        """The largest |cosine| of each feature with any vector, and of each vector with any feature.

        The axes of a plane have no angle of their own: for them it is the vector's share in the plane.
        """
        cosine = (self.directions @ _unit(vectors).T).abs()
        for members in self.planes:
            basis, _ = torch.linalg.qr(self.directions[members].T)
            cosine[members] = (_unit(vectors) @ basis).norm(dim=1)
        return cosine.amax(1), cosine.amax(0)

    def row(self, organism: str, method: str, site: Site, vectors: Tensor, alive: Tensor) -> ExamRow:
        kept = vectors[alive]
        common = {"organism": organism, "method": method, "site": str(site), "n_latents": len(vectors)}
        if not len(kept):
            none = NotMeasured(not_measured="no latent fires on held-out data")
            return ExamRow(**common, alive=0, truth_recovered=none, precision=none, by_frequency={})
        best, by_latent = self.nearest(kept)
        recovered = (best - self.null) / (1 - self.null)
        named = int((by_latent >= NEAR).sum())
        return ExamRow(
            **common,
            alive=len(kept),
            truth_recovered=self._code(kept) if "code used" in self.truth.facts else mean(recovered, "fraction"),
            precision=share(named, len(kept)),
            by_frequency=self._bands(recovered),
        )

    def _code(self, vectors: Tensor) -> Measured:
        """Of two equally sparse codes: 0 at chance, 1 if all latents belong to the one in use, below 0 to the other."""
        scored, scale = which_code(vectors, self.seed), 1 / (1 - CHANCE)
        value, low, high = ((x - CHANCE) * scale for x in (scored.value, scored.low, scored.high))
        return Measured(value=value, low=low, high=high, unit="fraction", n=scored.n)

    def _bands(self, recovered: Tensor) -> dict[str, Metric]:
        frequency = self.truth.facts.get("frequency")
        if not isinstance(frequency, dict):
            return {}
        of = torch.tensor([frequency[name] for name in self.names])
        out: dict[str, Metric] = {}
        for band, (low, high) in BANDS.items():
            inside = recovered[(of >= low) & (of < high)]
            few = NotMeasured(not_measured=f"{len(inside)} features are that frequent")
            out[band] = mean(inside, "fraction") if len(inside) > 1 else few
        return out


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _planes(truth: Truth, names: list[str]) -> list[list[int]]:
    return [[names.index(n) for n in plane] for plane in truth.facts.get("planes", []) if set(plane) <= set(names)]
