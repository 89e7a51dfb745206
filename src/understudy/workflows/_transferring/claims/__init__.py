"""Claims by name: one file each, and a line here."""

from understudy.workflows._transferring.claims.absorption import NestedRemovesAbsorption as NestedRemovesAbsorption
from understudy.workflows._transferring.claims.shrinkage import JumpReLURemovesShrinkage as JumpReLURemovesShrinkage
