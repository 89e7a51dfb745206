"""Cross-layer transcoder (Ameisen et al. 2025, "Circuit Tracing"): reads each MLP's input, writes this and every later
MLP's output. One member a layer; the group owns the one bias of each written site."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch

from understudy.core.dictionary import Acts, Group
from understudy.core.linear import LinearDictionary, Spans
from understudy.core.site import Site
from understudy.core.sparsity import Sparsity
from understudy.dictionaries._init import normalisation
from understudy.dictionaries.transcoder import Transcoder


class CLTLayer(LinearDictionary):
    """One layer of a cross-layer transcoder: reads one site, writes many, has no bias of its own."""

    kind: ClassVar[str] = "clt"
    spans: ClassVar[Spans] = "parts"

    @classmethod
    def start(
        cls, reads: Sequence[Site], writes: Sequence[Site], n_latents: int, sparsity: Sparsity, sample: Acts, seed: int
    ) -> Self:
        """Begin training: `sample` holds activations at the sites. Raises BadActivations.

        As a transcoder of the first written site, the layer's own; 0 is written to later ones. Layers that each wrote
        the whole of every output would sum to several times it.
        """
        own = Transcoder.start(reads, writes[:1], n_latents, sparsity, sample, seed)
        read, write = normalisation(sample, reads), normalisation(sample, writes)
        later = torch.zeros(n_latents, len(write.center) - own.W_dec.shape[1])
        arrays = {
            "W_enc": own.W_enc.detach(), "b_enc": torch.zeros(n_latents),
            "W_dec": torch.cat([own.W_dec.detach(), later], 1),
            "in_center": read.center, "in_scale": read.scale, "out_scale": write.scale,
        }  # fmt: skip
        widths = [{s: sample[s].shape[-1] for s in sites} for sites in (reads, writes)]
        return cls(widths[0], widths[1], sparsity, arrays)

    @classmethod
    def group(cls, members: Sequence[LinearDictionary], sample: Acts) -> Group:
        return clt_group(members, sample)


def clt_group(layers: Sequence[LinearDictionary], sample: Acts) -> Group:
    """Layers in forward order, summed, with one bias a site that starts at the site's geometric median."""
    sites = tuple(dict.fromkeys(s for layer in layers for s in layer.writes))
    return Group(layers, {s: normalisation(sample, [s]).center for s in sites})
