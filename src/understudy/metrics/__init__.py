"""What is measured, over which sums, with which intervals. One file for each question."""

from understudy.core.bootstrap import Bootstrap as Bootstrap
from understudy.metrics.behaviour import ArmSums as ArmSums
from understudy.metrics.compute import PowerLaw as PowerLaw
from understudy.metrics.compute import equivalent_compute as equivalent_compute
from understudy.metrics.compute import power_law as power_law
from understudy.metrics.error import ErrorFit as ErrorFit
from understudy.metrics.error import ErrorSums as ErrorSums
from understudy.metrics.ngram import NGrams as NGrams
from understudy.metrics.ngram import equivalent_ngram as equivalent_ngram
from understudy.metrics.reconstruction import Reconstruction as Reconstruction
from understudy.metrics.scaling import JointLaw as JointLaw
from understudy.metrics.scaling import RateLaw as RateLaw
from understudy.metrics.scaling import best_rate as best_rate
from understudy.metrics.scaling import joint_law as joint_law
from understudy.metrics.scaling import rate_law as rate_law
from understudy.metrics.sparsity import Dead as Dead
from understudy.metrics.sparsity import DensityHistogram as DensityHistogram
from understudy.metrics.sparsity import Sparsity as Sparsity
