"""Reports to render: a plausible one of any size, and the same with texts that try to break out of the page."""

import math
import random

from understudy.core.records.metric import Measured, Metric, NotMeasured, exact
from understudy.core.records.scorecard import (
    Behaviour,
    Context,
    CurvePoint,
    DictionaryRow,
    Feature,
    Positions,
    Recovered,
    Replaced,
    Report,
    Rival,
    Rollout,
    Scorecard,
    Slice,
    Token,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "</script>",
    "</style><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "<!-- ",
    "-->",
    "]]>",
    "&lt;b&gt;",
    "\x00\x01\x1b[31m\x7f\x85",
    "\ud800half",
    "\u202egnp.exe",
    "\ufeff\u200b",
    "👩‍👩‍👧‍👦",
    "שלום עולם",
    "مرحبا",
    "x" * 4000,
    "\r\n",
    "\t\t",
    "    ",
    "",
    "<details open ontoggle=alert(5)>",
    "javascript:alert(6)",
    "<plaintext>",
    "<svg/onload=alert(7)>",
]

CODE = (  # noqa: SIM905
    'def| fetch|(|self|,| url|:| str|,| *|,| timeout|=|None|)|:|\n|        |"""|Open| the| connection| and| return'
    '| what| it| says|."""|\n|        |if| not| self|.|_|closed|:|\n|            |raise| Runtime|Error|(|\'|Session'
    "| is| closed|'|)|\n|        |for| name|,| value| in| headers|.|items|()|:|\n|            |request|.|add|_|header"
    "|(|name|,| value|)|\n|        |return| response|.|read|()|\n|\n|class| Token|izer|(|object|)|:|\n|    |import| os"
).split("|")
SITES = [f"model.layers.{i}.mlp:out" for i in range(4)]


def measured(value: float, half: float = 0.0, unit: str = "nats", n: int = 512) -> Measured:
    return Measured(value=value, low=value - half, high=value + half, unit=unit, n=n)


def behaviour(delta: float, half: float = 0.015) -> Behaviour:
    def share(damage: float) -> Metric:
        value = 1 - delta / damage
        return measured(value, 0.012, "fraction")

    return Behaviour(
        loss_clean=measured(1.872, 0.041),
        loss_replaced=measured(1.872 + delta, 0.042),
        delta_loss=measured(delta, half),
        kl=measured(delta * 1.08, half),
        top1_agreement=measured(1 / (1 + delta), 0.006, "fraction"),
        recovered=Recovered(zero=share(6.9), mean=share(2.41), position_mean=share(2.33), resample=share(3.4)),
        equivalent_ngram=measured(3.4, 0.21, "order"),
        equivalent_compute=NotMeasured(not_measured="the network has no checkpoints"),
    )


def rival(delta: float, ours: float, half: float = 0.012, **more: object) -> Rival:
    return Rival(
        l0=exact(32, "latents", 512),
        replacement=behaviour(delta),
        paired_delta_loss=measured(delta - ours, half),
        **more,  # pyright: ignore[reportArgumentType]
    )


def feature(rng: random.Random, site: str, latent: int, n_contexts: int, texts: list[str]) -> Feature:
    maximum = rng.uniform(2, 14)
    contexts = []
    for c in range(n_contexts):
        band = ("top", "90-99%", "50-90%", "0-50%")[min(3, c * 4 // n_contexts)]
        start, peak = rng.randrange(len(texts)), rng.randrange(9, 15)
        height = maximum * (1, 0.8, 0.5, 0.15)[("top", "90-99%", "50-90%", "0-50%").index(band)]
        tokens = [Token(text=texts[(start + i) % len(texts)], activation=0.0) for i in range(24)]
        for at in [peak, *(i for i in range(24) if rng.random() < 0.12)]:
            share = 1.0 if at == peak else rng.random()
            tokens[at] = Token(text=tokens[at].text, activation=round(height * share, 3))
        contexts.append(Context(band=band, tokens=tokens, peak=peak))
    raises = [(rng.choice(texts), rng.uniform(0.2, 1.4)) for _ in range(8)]
    lowers = [(rng.choice(texts), -rng.uniform(0.2, 0.9)) for _ in range(8)]
    density = 10 ** rng.uniform(-4, -1)
    return Feature(
        dictionary=site,
        latent=latent,
        density=density,
        maximum=maximum,
        raises=raises,
        lowers=lowers,
        contexts=contexts,
    )


def report(n_features: int = 50, n_contexts: int = 12, texts: list[str] = CODE, name: str = "runs/stdlib-2m") -> Report:
    """A report of a run on four MLPs; `texts` are its tokens, names and samples."""
    rng = random.Random(0)
    word = (lambda plain: plain) if texts is CODE else (lambda plain: f"{plain} {rng.choice(texts)}")
    edges = [-5 + 0.25 * i for i in range(21)]
    rows = [
        DictionaryRow(
            site=site,
            kind=word("transcoder, topk"),
            n_latents=2048,
            fvu=measured(0.14 + 0.05 * i, 0.004, "fraction"),
            l0=measured(31.2 + i, 0.4, "latents"),
            dead=exact(0.012 * i, "fraction", 2048),
            shrinkage=measured(0.96, 0.004, "ratio"),
            density=[int(300 * math.exp(-((j - 9 - i) ** 2) / 12)) for j in range(20)],
            density_edges=edges,
        )
        for i, site in enumerate(SITES)
    ]
    baselines = {
        "pca": rival(0.91, 0.241),
        "top_neurons": rival(0.252, 0.241, is_oracle=True, note=word("the largest neurons of the MLP itself")),
        "linear_map": rival(0.198, 0.241, is_oracle=False, note="dense, no sparsity to compare"),
        "random_dictionary": rival(1.62, 0.241),
        "zero": rival(6.9, 0.241),
        "mean": rival(2.41, 0.241),
        "unfinished": Rival(
            l0=NotMeasured(not_measured="not run"),
            replacement=behaviour(0.5).model_copy(update={"delta_loss": NotMeasured(not_measured="out of memory")}),
            paired_delta_loss=NotMeasured(not_measured=word("out of memory")),
        ),
    }
    slices = [
        Slice(
            name=word(what),
            share=share,
            loss_clean=measured(1.5, 0.05),
            loss_replaced=measured(1.5 + delta, 0.05),
            delta_loss=measured(delta, 0.03),
        )
        for what, share, delta in [
            ("keyword", 0.11, 0.14),
            ("identifier, first seen", 0.17, 0.31),
            ("identifier, repeated", 0.24, 0.42),
            ("indentation", 0.19, 0.05),
            ("docstring", 0.16, 0.22),
            ("bracket", 0.13, 0.09),
        ]
    ]
    starts = [0, 1, 2, 4, 8, 16, 32, 64, 128]
    positions = [
        Positions(
            first=first,
            last=max(first, 2 * first - 1),
            loss_clean=measured(4.2 / (1 + 0.3 * i), 0.06),
            loss_replaced=measured(4.2 / (1 + 0.3 * i) + 0.1 + 0.03 * i, 0.06),
            delta_loss=measured(0.1 + 0.03 * i, 0.02),
        )
        for i, first in enumerate(starts)
    ]
    written = "".join(texts[:60])
    rollout = Rollout(
        prompts=64,
        prompt_length=32,
        length=128,
        loss_of_network_text=measured(1.21, 0.03),
        loss_of_replaced_text=measured(1.58, 0.04),
        delta_loss=measured(0.37, 0.03),
        by_position=positions[4:],
        samples=[{"prompt": "".join(texts[:18]), "network": written, "understudy": written[::-1]}] * 3,
    )
    curves = [
        CurvePoint(
            places=5000 * (t + 1),
            terms={
                site: {"fvu": 0.13 + 0.05 * i + 0.8 * math.exp(-t / 40), "aux": 0.9 - 0.001 * t, "fvu/x": 1.0}
                | {"l0": 32.0, "dead": 0.2 * math.exp(-t / 60) * (i + 1) / 4, "lr": 4e-4 * (1 - t / 400)}
                for i, site in enumerate(SITES)
            },
        )
        for t in range(400)
    ]
    card = Scorecard(
        run=word(name),
        network=word("demo:stdlib-2m"),
        data=word("stdlib, held out"),
        places=262_144,
        sequences=1024,
        replaced=Replaced(
            modules=[f"model.layers.{i}.mlp" for i in range(4)],
            share_of_parameters=0.617,
            share_of_compute=0.552,
            still_original=[word("embedding"), "attention (4)", "norms", "output head"],
        ),
        dictionaries=rows,
        replacement=behaviour(0.241),
        baselines=baselines,
        slices=slices,
        positions=positions,
        rollout=rollout,
        ngram_losses={str(i + 1): measured(v, 0.04) for i, v in enumerate([4.61, 2.9, 2.24, 2.02, 1.97])},
        thresholds={s: {"fvu_before": 0.14, "fvu_after": 0.143, "l0_before": 32, "l0_after": 31.4} for s in SITES}
        | {SITES[0]: {"fvu_before": 0.14, "fvu_after": 0.1, "delta_loss_before": 0.05, "delta_loss_after": 0.052}},
    )
    found = {s: [feature(rng, s, 7 * j + i, n_contexts, texts) for j in range(n_features)] for i, s in enumerate(SITES)}
    provenance = {"torch": "2.8.0", "processor": word("2 cores"), "seed": "0", "wall_s": "812"}
    return Report(scorecard=card, features=found, curves=curves, provenance=provenance)
