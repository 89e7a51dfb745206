"""What of a graph matters: influence, pruning by it, its rivals, and scores. An export here is the registry row."""

from understudy.pruning.activation import activation as activation
from understudy.pruning.flow import cumulative_share as cumulative_share
from understudy.pruning.flow import edge_influence as edge_influence
from understudy.pruning.flow import influence as influence
from understudy.pruning.random_order import random_order as random_order
from understudy.pruning.scores import score_graph as score_graph
from understudy.pruning.size import largest as largest
from understudy.pruning.size import prune as prune
from understudy.pruning.size import same_kinds as same_kinds
from understudy.pruning.thresholds import prune_by_thresholds as prune_by_thresholds
