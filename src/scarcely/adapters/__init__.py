"""Residual adapters: one network for many domains, whose convolutions are shared (chapters 3 and 4).

Usable on any network of convolutions, and without the trainer of this project.

Sources: "Learning multiple visual domains with residual adapters" (Rebuffi, Bilen and Vedaldi, 2017);
"Efficient parametrization of multi-domain deep neural networks" (Rebuffi, Bilen and Vedaldi, 2018).
"""

from scarcely.adapters.build import attach
from scarcely.adapters.model import AdaptedModel
from scarcely.adapters.svd import joint_svd
from scarcely.adapters.tables import Compression, ParameterTable

__all__ = ["AdaptedModel", "Compression", "ParameterTable", "attach", "joint_svd"]
