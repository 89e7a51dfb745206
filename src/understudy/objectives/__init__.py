"""Losses of a group. An export here is the registry row."""

from understudy.objectives.end_to_end import EndToEnd as EndToEnd
from understudy.objectives.gradient_weighted import GradientWeighted as GradientWeighted
from understudy.objectives.local_fvu import LocalFVU as LocalFVU
from understudy.objectives.matryoshka import Matryoshka as Matryoshka
from understudy.objectives.stochastic_masks import StochasticMasks as StochasticMasks
