"""Kinds of dictionaries. An export here is the registry row: `kind` -> class."""

from understudy.dictionaries.clt import CLTLayer as CLTLayer
from understudy.dictionaries.clt import clt_group as clt_group
from understudy.dictionaries.components import Components as Components
from understudy.dictionaries.components import TiedComponents as TiedComponents
from understudy.dictionaries.crosscoder import Crosscoder as Crosscoder
from understudy.dictionaries.sae import SAE as SAE
from understudy.dictionaries.skip_transcoder import SkipTranscoder as SkipTranscoder
from understudy.dictionaries.transcoder import Transcoder as Transcoder
