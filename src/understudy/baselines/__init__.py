"""Rivals as dictionaries. An export here is the registry row."""

from .constant import Constant as Constant
from .constant import PositionMean as PositionMean
from .constant import Resample as Resample
from .linear_map import LinearMap as LinearMap
from .neurons import TopNeurons as TopNeurons
from .pca import PCA as PCA
from .random_dictionary import RandomDictionary as RandomDictionary
