"""Classifiers of images of transformers (ViT and its kin): patches are places, the loss is one figure an image."""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.batch import NO_TARGET, Batch, Sequences
from understudy.core.network import NamedSite
from understudy.core.records.errors import BadInput
from understudy.core.site import Site
from understudy.networks.hf_stack import HFStack


class ImageSource(Protocol):
    """Labelled images in splits "train" and "held_out"."""

    def split(self, name: str) -> Sequences: ...


class HFImageClassifier(HFStack):
    """Any `AutoModelForImageClassification` that passes patches as places through a stack of blocks.

    Inputs are `pixel_values` [batch, channel, y, x]; targets are classes [batch, 1]. Loss, divergence and choice have
    one place an image.
    """

    family = "image classifier"

    def __init__(self, module: nn.Module, name: str, images: ImageSource | None = None) -> None:
        """images: what it runs on where a command names no data of its own."""
        super().__init__(module, name)
        self.images = images
        self._places = (3, self._n_places())

    def example(self) -> Batch:
        config = self.config
        size = config.image_size if isinstance(config.image_size, (tuple, list)) else [config.image_size] * 2
        g = torch.Generator().manual_seed(0)
        pixels = torch.rand(3, config.num_channels, *size, generator=g).to(self.device, self._dtype)
        classes = torch.arange(3, device=self.device)[:, None] % config.num_labels
        return Batch({"pixel_values": pixels}, targets=classes)

    def sequences(self, split: str) -> Sequences | None:
        return None if self.images is None else self.images.split(split)

    def forward(self, batch: Batch) -> Any:
        """A ModelOutput with `logits` [batch, class]."""
        return self.module(pixel_values=batch.inputs["pixel_values"].to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @torch.no_grad()
    def _n_places(self) -> int:
        """Places of the stream as the first block reads it: patches, and class tokens where there are any."""
        if not self._block_paths:
            return 1
        found: list[Tensor] = []
        first = self.module.get_submodule(self._block_paths[0])
        handle = first.register_forward_pre_hook(lambda _, args: found.append(args[0]))
        try:
            self.forward(self.example())
        finally:
            handle.remove()
        if not found or found[0].dim() != 3:
            raise BadInput(
                f"{self.name} ({type(self.module).__name__}) passes no patches [batch, place, d] through its blocks, "
                "as a convolutional network does not. Wrap it with AnyModule, whose axes say where its pixels are."
            )
        return found[0].shape[1]

    def _token_embed(self, embed: Site) -> list[NamedSite]:
        return []

    def aside(self) -> tuple[str, ...]:
        names = [n for n, m in self.module.named_children() if n == "classifier"]
        embeddings = [n for n, _ in self.module.named_modules() if n.endswith("embeddings") and n.count(".") <= 1]
        return (*names, *embeddings)

    # -- behaviour --------------------------------------------------------------------------------------------------

    def loss(self, output: Any, batch: Batch) -> Float[Tensor, "batch 1"]:
        """Cross-entropy of the class in nats, in fp32; 0 where there is no target."""
        if batch.targets is None:
            raise BadInput(f"the loss of {self.name} needs targets: classes [batch, 1].")
        targets = batch.targets.to(output.logits.device)[:, 0]
        return F.cross_entropy(output.logits.float(), targets, reduction="none", ignore_index=NO_TARGET)[:, None]

    def divergence(self, a: Any, b: Any, batch: Batch) -> Float[Tensor, "batch 1"]:
        """KL(a || b) between distributions over classes in nats, in fp32."""
        log_p, log_q = a.logits.float().log_softmax(-1), b.logits.float().log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True)

    def choice(self, output: Any) -> Int[Tensor, "batch 1"]:
        """The most likely class."""
        return output.logits.argmax(-1, keepdim=True)

    def scores(self, output: Any) -> Float[Tensor, "batch 1 n_classes"]:
        return output.logits[:, None]
