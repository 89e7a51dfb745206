"""What classifiers of pictures share, whatever they are made of: inputs, loss, divergence and choice."""

from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.batch import NO_TARGET, Batch, Sequences
from understudy.core.network import Network
from understudy.core.records.errors import BadInput

N_EXAMPLES = 3
USUAL = 224
"""Pixels of a side where nothing says how large pictures are."""


class ImageSource(Protocol):
    """Labelled images in splits "train" and "held_out"."""

    def split(self, name: str) -> Sequences: ...


class ImageClassifier(Network):
    """Inputs are `pixel_values` [batch, channel, y, x]; targets are classes [batch, 1].

    Loss, divergence and choice have one place an image.
    """

    family = "image classifier"
    config: Any
    images: ImageSource | None

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures it was made for."""
        found = getattr(self.config, "image_size", None)
        if not found and self.picture is not None and not self.picture.unsupported:
            return self.picture.size
        found = found or USUAL
        return (found, found) if isinstance(found, int) else (int(found[0]), int(found[1]))

    def example(self) -> Batch:
        return self.noise(self.size)

    def noise(self, size: tuple[int, int]) -> Batch:
        """Three pictures of noise, of any size."""
        g = torch.Generator().manual_seed(0)
        pixels = torch.rand(N_EXAMPLES, self.config.num_channels, *size, generator=g).to(self.device, self._dtype)
        classes = torch.arange(N_EXAMPLES, device=self.device)[:, None] % self.config.num_labels
        return Batch({"pixel_values": pixels}, targets=classes)

    def sequences(self, split: str) -> Sequences | None:
        return None if self.images is None else self.images.split(split)

    def forward(self, batch: Batch) -> Any:
        """A ModelOutput with `logits` [batch, class]."""
        return self.module(pixel_values=batch.inputs["pixel_values"].to(self._dtype))

    def aside(self) -> tuple[str, ...]:
        names = [n for n, _ in self.module.named_modules() if n.count(".") <= 1]
        return tuple(n for n in names if n == "classifier" or n.endswith(("embeddings", "embedder", "conv_stem")))

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


def class_names(module: nn.Module) -> tuple[str, ...]:
    """What its config calls the classes, in the order of the outputs."""
    config: Any = module.config
    names = config.id2label or {}
    return tuple(str(names.get(i, names.get(str(i), i))) for i in range(config.num_labels))
