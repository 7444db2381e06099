"""What a network looks at: saliency maps at any layer of any classifier (NormGrad, chapter 8)."""

from scarcely.saliency.attributor import Attributor, attribute
from scarcely.saliency.combine import combine
from scarcely.saliency.evaluate import (
    RandomizationStep,
    cascading_randomization,
    class_sensitivities,
    correlations,
    identity_correlations,
    quantus_explainer,
)
from scarcely.saliency.extract import ExtractAggregate
from scarcely.saliency.methods import METHODS, IntegratedGradients, SmoothGrad
from scarcely.saliency.weights import layer_weights, load_weights, save_weights

__all__ = [
    "METHODS",
    "Attributor",
    "ExtractAggregate",
    "IntegratedGradients",
    "RandomizationStep",
    "SmoothGrad",
    "attribute",
    "cascading_randomization",
    "class_sensitivities",
    "combine",
    "correlations",
    "identity_correlations",
    "layer_weights",
    "load_weights",
    "quantus_explainer",
    "save_weights",
]
