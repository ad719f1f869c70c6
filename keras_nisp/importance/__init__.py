"""Importances: they score channels by how much they matter."""

from keras_nisp.importance.base import Importance
from keras_nisp.importance.inf_fs import inf_fs
from keras_nisp.importance.lrp import LRP
from keras_nisp.importance.nisp import NISP, NISPMag
from keras_nisp.importance.optimal_brain import OptimalBrainSurgeon
from keras_nisp.importance.responses import LayerByLayer, Taylor
from keras_nisp.importance.synflow import SynFlow
from keras_nisp.importance.weights import BNScale, GeometricMedian, Magnitude, Random

__all__ = [
    "LRP",
    "NISP",
    "BNScale",
    "GeometricMedian",
    "Importance",
    "LayerByLayer",
    "Magnitude",
    "NISPMag",
    "OptimalBrainSurgeon",
    "Random",
    "SynFlow",
    "Taylor",
    "inf_fs",
]
