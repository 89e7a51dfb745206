"""What can be done to groups and graphs: keep a part, refit it, model its error, intervene. One method a file."""

from understudy.edits.expression import Expression as Expression
from understudy.edits.fill_mean import fill_mean as fill_mean
from understudy.edits.graph_groups import RunnableGraph as RunnableGraph
from understudy.edits.graph_groups import graph_groups as graph_groups
from understudy.edits.interventions import intervene as intervene
from understudy.edits.interventions import intervening as intervening
from understudy.edits.low_rank import ErrorModel as ErrorModel
from understudy.edits.low_rank import low_rank as low_rank
from understudy.edits.refit import refit as refit
from understudy.edits.restriction import restricted as restricted
