"""Where the figures come from: versions, machine, seeds, as recorded by the run."""

from understudy.core.records.scorecard import Report
from understudy.web.markup import Markup, tag
from understudy.web.tables import section


def provenance(report: Report) -> Markup | None:
    """Key and value, as they stand in the run folder."""
    if not report.provenance:
        return None
    pairs = (tag("div", tag("dt", key), tag("dd", value)) for key, value in report.provenance.items())
    return section("provenance", "Provenance", tag("dl", *pairs, class_="provenance"))
