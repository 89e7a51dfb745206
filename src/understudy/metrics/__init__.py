"""What is measured, over which sums, with which intervals. One file for each question."""

from .behaviour import ArmSums as ArmSums
from .intervals import Bootstrap as Bootstrap
from .ngram import NGrams as NGrams
from .ngram import equivalent_ngram as equivalent_ngram
from .reconstruction import Reconstruction as Reconstruction
from .sparsity import Dead as Dead
from .sparsity import DensityHistogram as DensityHistogram
from .sparsity import Sparsity as Sparsity
