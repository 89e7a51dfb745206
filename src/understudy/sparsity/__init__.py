"""Rules from pre-activations to latents. An export here is the registry row: a rule's `name` -> class."""

from understudy.sparsity.batch_topk import BatchTopK as BatchTopK
from understudy.sparsity.causal_importance import CausalImportance as CausalImportance
from understudy.sparsity.gated import Gated as Gated
from understudy.sparsity.groupmax import GroupMax as GroupMax
from understudy.sparsity.identity import Identity as Identity
from understudy.sparsity.jumprelu import JumpReLU as JumpReLU
from understudy.sparsity.multi_topk import MultiTopK as MultiTopK
from understudy.sparsity.relu import ReLU as ReLU
from understudy.sparsity.threshold import Threshold as Threshold
from understudy.sparsity.topk import TopK as TopK
