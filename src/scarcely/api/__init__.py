"""Arrays in, labels out: runs of this framework in scikit-learn's manner, for notebooks.

    labels = scarcely.fit_predict(images, n_clusters=10, random_state=0)

A fit composes, checks and trains what ``train.py`` does, in this process, and leaves it as it was: random
states, threads, warnings, loggers.
"""

from __future__ import annotations

from scarcely.api.arrays import ArrayError
from scarcely.api.estimators import Classifier, Clusterer, Discoverer, fit, fit_predict

__all__ = ["ArrayError", "Classifier", "Clusterer", "Discoverer", "fit", "fit_predict"]
