"""Rules from pre-activations to latents. An export here is the registry row: settings' `name` -> class."""

from understudy.sparsity.batch_topk import BatchTopK as BatchTopK
from understudy.sparsity.identity import Identity as Identity
from understudy.sparsity.threshold import Threshold as Threshold
from understudy.sparsity.topk import TopK as TopK
