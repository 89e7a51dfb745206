"""A ladder as plain data: networks of known training compute, scored on the same text, and what lies between them."""

from pydantic import Field

from understudy.core.records.metric import Measured, Metric, NotMeasured, Record
from understudy.core.records.summary import figure, table


class LadderRow(Record):
    """One network of the ladder."""

    name: str
    parameters: int
    tokens: int | None
    """Tokens it was trained on, where known."""
    flops: float
    is_annealed: bool = True
    """False for weights saved in the middle of a run: shown, and in no fit."""
    bits_per_byte: Metric


class Understood(Record):
    """What one recipe of dictionaries understands of one network."""

    network: str
    parameters: int
    loss_clean: Metric
    delta_loss: Metric
    recovered: Metric
    """Of mean ablation."""
    l0: float
    """Latents on at a place, the mean over dictionaries."""
    equivalent_compute: Metric


class LadderCard(Record):
    """Everything `understudy ladder` says."""

    data: str
    documents: int
    bytes: int
    """Of UTF-8 in the documents read."""
    rungs: list[LadderRow]
    """In the order of compute."""
    doubling: Metric
    """What a doubling of compute multiplies the bits per byte by, over all annealed rungs."""
    misfit: Metric
    """Largest distance of an annealed rung from that one power law, as a fraction of its bits per byte."""
    network: str = ""
    """A network placed on the ladder."""
    bits_per_byte: Metric = NotMeasured(not_measured="no network was placed on the ladder")
    equivalent_compute: Metric = NotMeasured(not_measured="no network was placed on the ladder")
    notes: list[str] = Field(default_factory=list)

    def __str__(self) -> str:
        head = ["rung", "parameters", "tokens", "FLOPs", "bits per byte"]
        rows = [
            [
                r.name + ("" if r.is_annealed else " *"),
                f"{r.parameters:,}",
                "?" if r.tokens is None else f"{r.tokens:,}",
                f"{r.flops:.3g}",
                figure(r.bits_per_byte),
            ]
            for r in self.rungs
        ]
        lines = [
            f"The ladder on {self.data}: {self.documents} documents, {self.bytes:,} bytes; intervals are 95%, over "
            "documents",
            "",
            table(head, rows),
            "",
        ]
        if any(not r.is_annealed for r in self.rungs):
            lines += ["* saved in the middle of a run, not annealed: in no fit", ""]
        lines.append(f"each doubling of compute multiplies bits per byte by  {figure(self.doubling)}")
        if isinstance(self.misfit, Measured):
            lines.append(f"largest distance of a rung from that one power law    {self.misfit.value:.1%}")
        lines.append("between rungs                                         a power law through the two neighbours")
        if self.network:
            lines += ["", f"{self.network}: {figure(self.bits_per_byte)} bits per byte"]
            unit = " FLOPs" if isinstance(self.equivalent_compute, Measured) else ""
            lines.append(f"  the ladder reaches that at {figure(self.equivalent_compute)}{unit}")
        return "\n".join([*lines, *self.notes])
