"""Kinds of dictionaries. An export here is the registry row: `kind` -> class."""

from .clt import CLTLayer as CLTLayer
from .clt import clt_group as clt_group
from .crosscoder import Crosscoder as Crosscoder
from .sae import SAE as SAE
from .transcoder import Transcoder as Transcoder
