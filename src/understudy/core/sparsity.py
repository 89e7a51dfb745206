"""Sparsity: the rule from pre-activations to latents, what training adds to the loss for it, and what it is in the end.

A rule may have learned parameters (thresholds, a gate). What keeps it sparse is its own business: the k of a TopK, or a
penalty that an objective adds to its loss. So neither the trainer nor an objective knows which rule it trains.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.core.latents import Encoded, Latents, Pre
from understudy.core.records.errors import BadInput, UnderstudyError

Norms = Callable[[], Float[Tensor, " L"]]
"""Length of what each latent writes: summed over written sites, each in units of its root total variance, over the
number of written sites. With gradients. A function, as not every rule needs it."""


class Also(NamedTuple):
    """Other latents of the same place that training wants to rebuild the activations as well."""

    name: str
    z: Latents
    weight: float
    """Of their FVU in the loss."""
    fixed_decoder: bool
    """True: the encoder alone learns from it."""


class Plain(NamedTuple):
    """A rule as it is used: pre-activations become `scale * pre + shift`, then `rule` applies."""

    rule: "Sparsity"
    scale: Float[Tensor, " L"] | None = None
    shift: Float[Tensor, " L"] | None = None


class Sparsity(nn.Module, ABC):
    """The rule from pre-activations to latents."""

    name: ClassVar[str]
    """As `--sparsity` and a saved run name it."""
    is_thresholded: ClassVar[bool] = False
    """True if each latent depends on its own pre-activation only, so that dropping one leaves the others unchanged."""
    per_latent: ClassVar[tuple[str, ...]] = ()
    """Arguments of the constructor that are arrays with an entry for each latent."""
    lr_factor: ClassVar[float] = 1.0
    """Learning rate of the rule's parameters over that of the dictionary's."""

    @abstractmethod
    def forward(self, pre: Pre) -> Latents: ...

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """`name` and the constructor's other arguments, JSON values; arrays are buffers or parameters."""

    @classmethod
    def start(cls, *args: Any, **options: Any) -> Self:
        """The rule at the start of training. A subclass names the options it takes, e.g. `n_latents`, `d_out`, `k`."""
        raise BadInput(f"{cls.__name__} is not a rule to train with: it is what rules become, or what rivals use.")

    # -- in training ------------------------------------------------------------------------------------------------

    def penalty(
        self, encoded: Encoded, norms: Norms, dead: Bool[Tensor, " L"] | None, done: float
    ) -> dict[str, Float[Tensor, ""]]:
        """What training adds to the loss, by name: weighted means over places. `done`: share of the run in [0, 1]."""
        return {}

    def also(self, encoded: Encoded) -> list[Also]:
        """Other latents that should rebuild the activations too."""
        return []

    def after_step(self) -> None:
        """Called after the optimiser's step: keep constraints exactly."""

    # -- in use -----------------------------------------------------------------------------------------------------

    def plain(self) -> Plain | None:
        """Exactly the same rule with per-latent thresholds and nothing that only training needs; None: it is plain.

        For rules under which latents do not compete. Others say how in `as_threshold`.
        """
        return None

    def as_threshold(self, theta: Float[Tensor, " L"]) -> "Sparsity":
        """The rule to use in place of one under which latents compete."""
        raise UnderstudyError(f"{type(self).__name__} does not say how to become thresholds.")

    def scaled(self, factor: Float[Tensor, ""]) -> "Sparsity":
        """The same rule when every pre-activation is multiplied by `factor` > 0 and every latent should be too."""
        return self

    def restrict(self, ids: Int[Tensor, " m"]) -> "Sparsity":
        """The rule for some latents. Raises for rules under which latents compete."""
        if not self.is_thresholded:
            raise UnderstudyError(
                f"{type(self).__name__} lets latents compete, so some of them alone mean something else. "
                "Convert with dictionary.thresholded(acts) first."
            )
        return self


def check_k(k: int, n_latents: int | None = None) -> int:
    """Raises BadInput for a k that keeps nothing, or more than there is."""
    if k < 1:
        raise BadInput(f"k={k}: a dictionary that keeps no latents cannot write anything; k must be at least 1.")
    if n_latents is not None and k > n_latents:
        raise BadInput(f"k={k} is more than the {n_latents} latents there are.")
    return k


def check_coefficient(name: str, value: float, above: bool = False) -> float:
    """Raises BadInput for NaN, infinite or negative coefficients; with `above`, for 0 too."""
    lowest = value > 0 if above else value >= 0
    if not (lowest and value < float("inf")):
        raise BadInput(f"{name}={value}: it must be a number {'above 0' if above else '0 or above'}.")
    return float(value)


def per_place(values: Float[Tensor, " Z"], z: Latents) -> Float[Tensor, ""]:
    """Mean over places of the sum of occurrences."""
    return values.sum() / max(1, len(z.offsets) - 1)


def ramp(done: float, over: float) -> float:
    """From 0 to 1 over the first share `over` of a run."""
    return min(1.0, done / over) if over else 1.0
