"""Rivals as dictionaries. An export here is the registry row."""

from understudy.baselines.constant import Constant as Constant
from understudy.baselines.constant import PositionMean as PositionMean
from understudy.baselines.constant import Resample as Resample
from understudy.baselines.kept_neurons import KeptNeurons as KeptNeurons
from understudy.baselines.linear_map import LinearMap as LinearMap
from understudy.baselines.neuron_basis import NeuronBasis as NeuronBasis
from understudy.baselines.neurons import TopNeurons as TopNeurons
from understudy.baselines.pca import PCA as PCA
from understudy.baselines.random_dictionary import RandomDictionary as RandomDictionary
