"""Edges between features on one input, exact for a frozen network, with their certificate."""

from understudy.attribution.build import Limits as Limits
from understudy.attribution.build import build as build
from understudy.attribution.chunks import ChunkFolder as ChunkFolder
from understudy.attribution.local import LocalPass as LocalPass
from understudy.attribution.plan import plan as plan
from understudy.attribution.rows import Target as Target
