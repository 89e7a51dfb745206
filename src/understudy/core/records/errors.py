"""Every error Understudy raises on purpose, as one tree.

UnderstudyError             exit code 1: what was asked could not be done
├── BadInput                exit code 2: what was asked does not fit what was found
│   ├── UnknownName           a network, site, key, kind, data source or file that is not there
│   ├── WrongShape            a width or shape that does not fit the network
│   ├── BadData               empty, too short, unreadable
│   ├── BadActivations        constant, NaN or infinite
│   ├── BadWeights            truncated, corrupt, pickled or alien weights
│   └── BadFolder             a run folder that exists, cannot be written, or is not a run
├── SiteError               a site that cannot be read or replaced
│   ├── SiteNeverFired        the forward pass did not reach it
│   ├── NoTensor              the module takes or gives no floating tensor there
│   ├── ActivationOverwritten an in-place operation changed what was read
│   └── HooksIgnored          a compiled module would skip our hooks
├── AmbiguousWrite          two groups write one site
├── AcausalReplacement      a dictionary would have to write before it has read
├── NeedsRecording          a policy that needs a clean pass was run without one
├── TooLarge                a dense tensor beyond the stated limit was asked for
├── NonFiniteLoss           training stopped at a loss that is NaN or infinite
├── Imprecise               a processor rounds more coarsely than an exact method allows for
└── DiskFull                a write ran out of space; what was saved before is whole
"""

import difflib
from collections.abc import Iterable


class UnderstudyError(Exception):
    """Base of all errors with a message written for the person who meets it."""

    exit_code = 1


class BadInput(UnderstudyError):
    exit_code = 2


class UnknownName(BadInput):
    """Carries the nearest known names in its message."""

    @classmethod
    def among(cls, what: str, asked: str, known: Iterable[str], hint: str = "") -> "UnknownName":
        """Build the message: what was asked for, the nearest known names, what to do."""
        known = list(known)
        close = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
        listed = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        found = f"Did you mean {' or '.join(close)}?" if close else f"Known: {listed or 'none'}."
        return cls(f"{asked!r} is not a known {what}. {found}" + (f" {hint}" if hint else ""))


class WrongShape(BadInput): ...


class BadData(BadInput): ...


class BadActivations(BadInput): ...


class BadWeights(BadInput): ...


class BadFolder(BadInput): ...


class SiteError(UnderstudyError): ...


class SiteNeverFired(SiteError): ...


class NoTensor(SiteError): ...


class ActivationOverwritten(SiteError): ...


class HooksIgnored(SiteError): ...


class AmbiguousWrite(UnderstudyError): ...


class AcausalReplacement(UnderstudyError): ...


class NeedsRecording(UnderstudyError): ...


class TooLarge(UnderstudyError): ...


class NonFiniteLoss(UnderstudyError): ...


class Imprecise(UnderstudyError): ...


class DiskFull(UnderstudyError): ...
