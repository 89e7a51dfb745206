"""What every figure of the page means and its unit. A label with `term(key)` links here."""

from understudy.web.markup import Markup, join, tag

Terms = dict[str, tuple[str, str, str]]

TERMS: Terms = {
    # key: (name, unit, definition)
    "loss": (
        "Loss",
        "nats per place",
        "Mean negative log-likelihood of what came next. A place is one scored position; every arm is scored on the "
        "same places.",
    ),
    "delta_loss": (
        "Excess loss",
        "nats per place",
        "Loss with dictionaries in the network's place, minus the loss of the network itself. 0 is a perfect "
        "understudy. It needs no baseline to be read.",
    ),
    "interval": (
        "Interval [low, high]",
        "as the figure",
        "95% bootstrap interval over whole sequences. Hold the pointer over a figure for the number of sequences. A "
        "figure without an interval is a count or an exact share.",
    ),
    "kl": (
        "KL",
        "nats per place",
        "Divergence of the understudy's predictions from the network's, KL(network || understudy). 0 means equal "
        "predictions, right or wrong.",
    ),
    "top1": (
        "Top-1 agreement",
        "share of places",
        "How often the understudy's most likely output is the network's most likely output.",
    ),
    "recovered": (
        "Recovered",
        "share of an ablation's damage",
        "1 − excess loss of the understudy / excess loss of the ablation. 100% is as good as the network, 0% as bad as "
        "the ablation, below 0% worse. The harsher the ablation, the more flattering the share: zero flatters most.",
    ),
    "zero": ("Zero ablation", "", "The replaced modules write zeros. Far outside what the network has ever met."),
    "mean": ("Mean ablation", "", "The replaced modules write their mean output, whatever the input."),
    "position_mean": (
        "Position-mean ablation",
        "",
        "They write their mean output at that position in the sequence, whatever the input.",
    ),
    "resample": ("Resample ablation", "", "They write what they computed for another sequence, at the same position."),
    "ngram": (
        "Equivalent n-gram",
        "order",
        "The order at which an interpolated n-gram model reaches the understudy's loss, between whole orders by "
        "interpolation.",
    ),
    "compute": (
        "Equivalent compute",
        "FLOPs",
        "The least training compute, 6 x parameters x tokens, at which a ladder of networks of one family has the "
        "understudy's loss on the same places. Interpolated between two rungs; beyond the ends not measured.",
    ),
    "parameters": (
        "Share of parameters replaced",
        "share",
        "Of the network's parameters, without embedding and output head.",
    ),
    "flops": ("Share of compute replaced", "share", "Of the floating-point operations of one forward pass."),
    "rival": (
        "Rival",
        "",
        "Another way to play the same part, at the sparsity (L0) given beside it. A rival that the understudy cannot "
        "beat means its features explain no more than that rival does.",
    ),
    "oracle": (
        "Oracle",
        "",
        "A rival that reads what the replaced module itself computes, such as its own neurons. It is a ceiling to aim "
        "at rather than a rival on equal terms.",
    ),
    "paired": (
        "Paired difference",
        "nats per place",
        "Loss with the rival minus loss with the understudy on the same sequences. Above 0 the understudy is better. "
        "There is a verdict only where the interval excludes 0.",
    ),
    "fvu": (
        "FVU",
        "fraction",
        "Fraction of variance unexplained: squared error of the dictionary over the variance of what it should write. "
        "0 is exact, 1 is no better than writing the mean.",
    ),
    "l0": ("L0", "latents per place", "How many latents are on at a place, on average."),
    "dead": ("Dead latents", "share of latents", "Latents silent over the whole evaluation set."),
    "shrinkage": (
        "Shrinkage",
        "ratio",
        "Scale of what the dictionary writes against what it should write. 1 is faithful, below 1 is too small.",
    ),
    "density": (
        "Density",
        "share of places",
        "The share of places at which a latent is on. Histograms count live latents by the power of ten of density.",
    ),
    "slice": (
        "Slice",
        "",
        "A labelled share of the scored places. Its contribution is share × excess loss: what it adds to the excess "
        "loss of the whole. Slices may overlap.",
    ),
    "position": ("Position", "places from the start", "The same losses by position in the sequence."),
    "rollout": (
        "Rollout",
        "nats per place",
        "Each writes freely from the same prompts, and the network, unreplaced, reads both texts. A drifting "
        "understudy writes text that the network finds unlikely.",
    ),
    "thresholds": (
        "Thresholds",
        "",
        "After training, a rule that compares latents (top-k) is turned into one threshold per latent, so that each "
        "latent has a meaning of its own. Before and after say what that cost.",
    ),
    "activation": (
        "Activation",
        "in units of the latent's atom",
        "How strongly a latent is on at a place: a token, a patch or position of a picture. Shades are shares of the "
        "latent's maximum; the outlined place is the one for which the context was chosen.",
    ),
    "classes": (
        "Share by class",
        "share of the latent's activation",
        "Activations summed over all places of the pictures of a class that were looked at, as a share of the sum over "
        "all classes.",
    ),
    "band": (
        "Band",
        "",
        "Where in the range of a latent's activations the outlined place lies. Top examples alone flatter a feature; "
        "low bands show what it usually means.",
    ),
    "claim": (
        "Claimed",
        "",
        "What somebody else wrote that the latent means, mostly a language model that was shown its strongest places. "
        "It stands here as they gave it out, with where it is from; nothing here tested it.",
    ),
    "outputs": (
        "Raises, lowers",
        "logits per unit",
        "Outputs that the latent's atom raises and lowers most through the direct path to the output, centred over "
        "outputs. What later layers make of it is not included.",
    ),
}


def term(key: str, label: str | None = None, terms: Terms = TERMS) -> Markup:
    """The name of a figure (or `label`) with a link to its definition."""
    name = terms[key][0]
    link = tag("a", "?", href=f"#def-{key.replace('_', '-')}", class_="q", aria_label=f"What is {name}?")
    return join(tag("span", name if label is None else label, class_="term"), "\u2060", link)


def glossary(terms: Terms = TERMS) -> Markup:
    """All definitions as a description list."""
    entries = [
        tag(
            "div",
            tag("dt", name, tag("span", f" {unit}", class_="unit") if unit else None),
            tag("dd", text),
            id=f"def-{key.replace('_', '-')}",
        )
        for key, (name, unit, text) in terms.items()
    ]
    return tag("dl", *entries, class_="glossary")
