"""What the figures of a graph's page mean."""

from understudy.web.glossary import Terms

TERMS: Terms = {
    # key: (name, unit, definition)
    "edge": (
        "Edge",
        "units of the target's pre-activation",
        "What one node adds to another on this input, with attention patterns, norms and gates held as they were. Blue "
        "adds, red takes away. Edges, biases and what is not kept sum to the pre-activation.",
    ),
    "share": (
        "Share",
        "of what flows in",
        "|edge| over the sum of |edges| and |what is not kept| of the same target. Lines are as wide as their share.",
    ),
    "influence": (
        "Influence",
        "share of the targets",
        "What flows from the targets back through a node when every node passes on what it has to its sources by "
        "their shares. Marks are as large as their influence. It follows |edges| in the frozen network and is no "
        "evidence of what an intervention does.",
    ),
    "remainder": (
        "Not kept",
        "units of the target's pre-activation",
        "Edges that are not part of this graph, summed. In per cent: their absolute mass as a share of all that flows "
        "in. Nothing that is left out is forgotten.",
    ),
    "error": (
        "Error",
        "",
        "What the network writes at a place minus what the dictionary writes. Large errors mean that the graph "
        "explains little there.",
    ),
    "replacement": (
        "Replacement score",
        "share of influence",
        "Of the influence that ends at inputs, errors or in what is not kept: the share that ends at inputs. It can "
        "rise while behaviour gets worse; run the graph to know.",
    ),
    "completeness": (
        "Completeness score",
        "share of influence",
        "Of all that flows into nodes, weighted by their influence: the share that is neither an error nor left out.",
    ),
    "live": (
        "Agreement with live interventions",
        "slope, R\u00b2, rank correlation",
        "Changes that the edges predict against changes measured when a latent is taken out of the network with "
        "nothing held fixed. A perfect graph has slope, R\u00b2 and rank correlation 1.",
    ),
    "exact": (
        "Bookkeeping",
        "",
        "Whether rows sum to pre-activations and edges equal interventions in the frozen network. It says that the "
        "arithmetic is right, nothing about the network running free.",
    ),
}
