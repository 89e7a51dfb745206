"""Rules from pre-activations to latents. An export here is the registry row: settings' `name` -> class."""

from .batch_topk import BatchTopK as BatchTopK
from .identity import Identity as Identity
from .threshold import Threshold as Threshold
from .topk import TopK as TopK
