"""Sections of the report page, one file each: a function from the record to markup, or None if there is nothing."""

from understudy.web.sections.dictionaries import dictionaries as dictionaries
from understudy.web.sections.features import features as features
from understudy.web.sections.places import places as places
from understudy.web.sections.provenance import provenance as provenance
from understudy.web.sections.recovered import recovered as recovered
from understudy.web.sections.rivals import rivals as rivals
from understudy.web.sections.rollout import rollout as rollout
from understudy.web.sections.training import training as training
