"""Sections of the report page, one file each: a function from the record to markup, or None if there is nothing."""

from .dictionaries import dictionaries as dictionaries
from .features import features as features
from .places import places as places
from .provenance import provenance as provenance
from .recovered import recovered as recovered
from .rivals import rivals as rivals
from .rollout import rollout as rollout
from .training import training as training
