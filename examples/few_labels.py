"""Classify digits with five labels a class, without and with 1,747 unlabelled images; the picture compares.

python examples/few_labels.py [few_labels.png]
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import scarcely

digits = load_digits()
images, truth = digits.images / 16, digits.target
y = np.full_like(truth, -1)
for k in range(10):
    first = np.flatnonzero(truth == k)[:5]
    y[first] = k

common = {"random_state": 0, "accelerator": "cpu"}
alone = scarcely.fit(images, y, method="supervised", epochs=40, **common)
cycles = {"method.cycles": 4, "method.final_cycles": 1}
both = scarcely.fit(images, y, method="alternating_ssl", epochs=16, overrides=cycles, **common)

figure = Figure(figsize=(6, 2.4), layout="constrained")
axis = figure.subplots()
scores = [float((fitted.labels_ == truth)[y == -1].mean()) for fitted in (alone, both)]
bars = axis.barh(["50 labels alone", "and 1,747 images without"], scores, color=["#bbbbbb", "#3b6ea5"])
axis.bar_label(bars, [f"{score:.1%}" for score in scores], padding=3)
axis.set(xlim=(0, 1.1), xlabel="accuracy on the unlabelled images", title="Five labels a digit")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "few_labels.png")
