"""From a configuration to the objective its groups train on."""

from typing import TYPE_CHECKING

from understudy.core.objective import Objective
from understudy.core.records.errors import BadInput, UnknownName
from understudy.core.sparsity import check_coefficient
from understudy.objectives import EndToEnd, GradientWeighted, LocalFVU, Matryoshka, StochasticMasks

if TYPE_CHECKING:
    from understudy.workflows.train import TrainConfig

OBJECTIVES = ("local", "matryoshka", "kl", "loss", "gradient_weighted", "stochastic_masks")
LOCAL_WEIGHTS = {"kl": 0.5, "loss": 0.5, "gradient_weighted": 0.1}
"""Of the local FVU beside an objective that looks downstream. Without it an end-to-end dictionary rebuilds activations
up to what the next norm takes away, their size for one, and thresholds fitted to it fire in the wrong places (measured:
docs/log.md)."""


def objective(config: "TrainConfig", k_aux: int) -> Objective:
    """Raises UnknownName, BadInput."""
    local = LocalFVU(k_aux if config.dead == "auxk" else 0, check_coefficient("aux_weight", config.aux_weight))
    if config.prefixes is not None and config.objective != "matryoshka":
        raise BadInput(f"--prefixes belong to --objective matryoshka, not to {config.objective}.")
    if config.local_weight and config.objective not in LOCAL_WEIGHTS:
        takers = "kl, loss and gradient_weighted"
        raise BadInput(f"--local-weight belongs to --objective {takers}; {config.objective} is local by itself.")
    if config.objective != "stochastic_masks" and (config.layerwise, config.faithfulness) != (1.0, 0.0):
        raise BadInput("--layerwise and --faithfulness belong to --objective stochastic_masks.")
    if config.objective != "gradient_weighted" and config.probes != 1:
        raise BadInput("--probes belong to --objective gradient_weighted.")
    match config.objective:
        case "local":
            return local
        case "matryoshka":
            return Matryoshka(prefix_sizes(config.prefixes, config.n_latents), local)
        case "kl" | "loss":
            return EndToEnd(config.objective, _local_weight(config), local)
        case "gradient_weighted":
            return GradientWeighted(config.probes, _local_weight(config), config.seed, local)
        case "stochastic_masks":
            return StochasticMasks(config.layerwise, config.faithfulness, config.seed)
    raise UnknownName.among("objective", config.objective, OBJECTIVES)


def _local_weight(config: "TrainConfig") -> float:
    """As asked for, or the objective's own."""
    asked = LOCAL_WEIGHTS[config.objective] if config.local_weight is None else config.local_weight
    return check_coefficient("local_weight", asked)


def prefix_sizes(text: str | None, n_latents: int) -> tuple[int, ...]:
    """Sizes of the groups whose running sums are the prefixes; by default 1/16, 1/16, 1/8, 1/4 and the rest."""
    if text is None:
        parts = [max(1, n_latents // share) for share in (16, 16, 8, 4)]
        parts = [*parts, n_latents - sum(parts)]
        if parts[-1] < 1:
            raise BadInput(f"{n_latents} latents are too few for the usual five prefixes: give --prefixes.")
        return tuple(parts)
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"--prefixes {text}: write sizes of groups, e.g. 64,64,128,256.") from None
    if min(sizes) < 1 or sum(sizes) != n_latents:
        raise BadInput(
            f"--prefixes {text}: group sizes must be 1 or more and add up to n_latents={n_latents}; these add up to "
            f"{sum(sizes)}."
        )
    return sizes
