"""Classifiers of pictures of transformers that pass patches as places through one stack of blocks (ViT and its kin)."""

from dataclasses import replace

import torch
from torch import nn

from understudy.core.network import NamedSite
from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.networks._feature_maps import calls
from understudy.networks._images import N_EXAMPLES, ImageClassifier, ImageSource
from understudy.networks.hf_stack import HFStack


class HFImageClassifier(ImageClassifier, HFStack):
    """Any `AutoModelForImageClassification` whose blocks all read and write [batch, place, d] of the same places."""

    def __init__(
        self, module: nn.Module, name: str, images: ImageSource | None = None, picture: PictureInput | None = None
    ) -> None:
        """images: what it runs on where a command names no data of its own; picture: how it reads one."""
        super().__init__(module, name)
        self.images, self.picture = images, picture
        self._places = (N_EXAMPLES, self._n_places())
        if picture is not None:
            self.picture = replace(picture, patches=self._patches())

    @torch.no_grad()
    def _n_places(self) -> int:
        """Places of the stream: patches, and class tokens where there are any."""
        if not self._block_paths:
            return 1
        found = calls(self.module, lambda: self.forward(self.example()))
        shapes = {s for p in self._block_paths if p in found for s in (found[p].reads, found[p].writes)}
        if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or shape[0] != N_EXAMPLES:
            raise BadInput(
                f"{self.name} ({type(self.module).__name__}) does not pass the same patches [batch, place, d] through "
                "all its blocks. HFConvNet is the adapter for maps whose size changes on the way."
            )
        return shape[1]

    def _patches(self) -> tuple[int, int] | None:
        """Rows and columns of patches, where the config says how large one is and the places agree."""
        patch = getattr(self.config, "patch_size", None)
        if patch is None:
            return None
        high, wide = (patch, patch) if isinstance(patch, int) else tuple(patch)
        rows, columns = self.size[0] // high, self.size[1] // wide
        return (rows, columns) if 0 <= self._places[1] - rows * columns <= 2 else None

    def _token_embed(self, embed: Site) -> list[NamedSite]:
        return []
