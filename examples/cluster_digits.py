"""Cluster handwritten digits without a single label; each row of the picture is a cluster, the surest first.

python examples/cluster_digits.py [clusters.png]
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import scarcely

images = load_digits().images / 16  # (1797, 8, 8) in [0, 1]
clusterer = scarcely.fit(images, n_clusters=10, epochs=9, random_state=0, accelerator="cpu")

sure = clusterer.predict_proba(images).max(axis=1)
figure = Figure(figsize=(8, 6))
for k, row in enumerate(figure.subplots(10, 15)):
    members = np.flatnonzero(clusterer.labels_ == k)
    best = members[np.argsort(-sure[members])][:15]
    for axis in row:
        axis.axis("off")
    for axis, i in zip(row, best, strict=False):
        axis.imshow(images[i], cmap="gray_r")
figure.suptitle("Ten clusters of digits, found without labels")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "clusters.png")
