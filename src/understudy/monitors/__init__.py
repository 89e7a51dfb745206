"""Monitors: scores of inputs, fitted on trusted ones. An export here is the registry row."""

from understudy.monitors.new_reasons import NewReasons as NewReasons
from understudy.monitors.novelty import InputNovelty as InputNovelty
from understudy.monitors.surprise import SurprisePair as SurprisePair
