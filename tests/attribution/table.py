"""Print docs/certificates.md: `python -m tests.attribution.table > docs/certificates.md`. A minute or two."""

import sys
import warnings

import torch
import transformers

from tests.attribution.random_dictionaries import card, one
from tests.attribution.test_architectures import WANTED, local_pass
from understudy.attribution import LocalPass, build
from understudy.attribution.targets import output
from understudy.baselines import NeuronBasis
from understudy.core.dictionary import Group
from understudy.core.network import Network
from understudy.core.records.metric import Measured, Metric
from understudy.edits import Expression
from understudy.networks import open_network
from understudy.organisms import make_organism

TRAINED = {
    "demo": lambda: open_network("demo"),
    **{f"organism:{n}": lambda n=n: make_organism(n).network for n in ("histogram", "backdoor", "mess3")},
}
"""Networks that compute something, with their own neurons as latents."""
CHECKED = 16
"""Latents removed, one at a time."""

HEAD = """# Certificates, and the truth beside them

One graph a network, one input, one output as target. The first {n} networks are [the zoo's](zoo.md): weights and
dictionaries are random, so their live agreement says how far freezing carries in such a network, not how well anything
is understood. The last {m} compute something; their own neurons are the latents.

- **exact**: all three errors of the bookkeeping (rows, clamp, curvature, relative) are below 1e-4.
- **frozen**: what was held at its value to make the network linear there.
- **live**: {checked} latents are removed one at a time from the network, nothing frozen but what other dictionaries
  wrote; slope (measured over predicted), R2 and rank correlation of the changes they have edges to, 95% intervals over
  the removed latents. 1 is perfect; an R2 below 0 is worse than predicting no change.
- **expression**: the graph evaluated by its own edges and thresholds, everything kept, errors and remainders measured:
  largest error of any value, relative to the largest value.

[What these mean](guide/attribution.md#how-far-to-believe-it). Made by `python -m tests.attribution.table >
docs/certificates.md`; the tests compare networks, certificates and what was frozen, not the digits.

| network | exact | rows | clamp | curvature | frozen | live slope | live R2 | live rank | expression |
|---|---|---|---|---|---|---|---|---|---|
"""


def of_neurons(network: Network) -> LocalPass:
    """The neurons of every part that has some, on the first example."""
    found = [(p, network.neurons(p)) for p in network.parts()]
    groups = [Group([NeuronBasis(own.site, p.write, own.W, own.bias)]) for p, own in found if own is not None]
    return LocalPass(network, groups, one(network))


def row(name: str, local: LocalPass, checked: int = CHECKED) -> str:
    """One line of the table; without live agreement for checked=0."""
    built = build(local, [output(local, 1)], card(local.network, list(local.groups)))
    built = built.check(checked) if checked else built
    proof, live, nodes = built.graph.card.certificate, built.graph.card.live, built.graph.nodes
    assert proof is not None
    assert proof.clamp_error is not None
    assert proof.second_derivative is not None
    frozen = ", ".join(dict.fromkeys(f.rule for f in proof.frozen)) or "nothing"
    errors = (proof.row_sum_error, proof.clamp_error, proof.second_derivative)
    expression = Expression(built.graph)
    missed = (expression.values(measured=True)[0] - expression.clean)[nodes.computed].abs().max()
    said = f"{float(missed / nodes.value[nodes.computed].abs().max()):.0e}"
    shown = [*(f"{e:.0e}" for e in errors), frozen, *map(figure, (live.slope, live.r2, live.rank)), said]
    return f"| {name} | {'yes' if proof.exact else 'no'} | {' | '.join(shown)} |"


def figure(metric: Metric) -> str:
    if not isinstance(metric, Measured):
        return "not measured"
    return f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(HEAD.format(n=len(WANTED), m=len(TRAINED), checked=CHECKED), end="")
    for name, about in WANTED.items():
        print(row(f"{name} ({about})", local_pass(name)), flush=True)
    for name, opened in TRAINED.items():
        print(row(name, of_neurons(opened())), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
