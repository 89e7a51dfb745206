"""Dictionaries in the files of other libraries. A row of FORMATS is a module with `find`, and `write` where it can."""

from understudy.formats._entry import Entry as Entry
from understudy.formats.fitting import Fitted as Fitted
from understudy.formats.fitting import fit as fit
from understudy.formats.known import KNOWN as KNOWN
from understudy.formats.known import Known as Known
from understudy.formats.known import known_for as known_for
from understudy.formats.source import FORMATS as FORMATS
from understudy.formats.source import check_apart as check_apart
from understudy.formats.source import open_source as open_source
