"""Keep everything, signs included: the rule of PCA and of other rivals whose budget is their width."""

from typing import Any, ClassVar

import torch

from understudy.core.dictionary import Sparsity
from understudy.core.latents import Latents, Pre


class Identity(Sparsity):
    is_thresholded: ClassVar[bool] = True

    def forward(self, pre: Pre) -> Latents:
        return pre.above(-torch.inf)

    def settings(self) -> dict[str, Any]:
        return {"name": "identity"}
