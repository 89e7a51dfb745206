"""Losses of a group. An export here is the registry row."""

from understudy.objectives.end_to_end import EndToEnd as EndToEnd
from understudy.objectives.local_fvu import LocalFVU as LocalFVU
from understudy.objectives.matryoshka import Matryoshka as Matryoshka
