"""Acausal crosscoder: one set of latents for several sites (Lindsey et al. 2024, "Sparse Crosscoders")."""

from collections.abc import Sequence
from typing import ClassVar, Self

from understudy.core.dictionary import Acts
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import tied_at_places


class Crosscoder(LinearDictionary):
    """Reads and writes every site; each is normalised on its own, so that none outweighs the others. Each
    latent starts at the direction of a place, over all sites.

    It writes its first site before it has read its last: it intervenes and analyses, it cannot stand in (see
    `AcausalReplacement`).
    """

    kind: ClassVar[str] = "crosscoder"
    spans: ClassVar[Spans] = "sites"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations."""
        arrays = tied_at_places(sample, reads, n_latents, sparsity, seed)
        widths = {s: sample[s].shape[-1] for s in reads}
        return cls(widths, widths, sparsity, arrays)
