"""Resident memory of this process, as Linux counts it."""

from pathlib import Path


def resident_mib() -> float | None:
    """Now; None where the system does not say."""
    return _field("VmRSS")


def peak_mib() -> float | None:
    """The most since `forget_peak`."""
    return _field("VmHWM")


def forget_peak() -> None:
    """Count the peak from here on."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _field(name: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
