"""Discover the digits 5 to 9 among unlabelled images, with 0 to 4 known; the picture counts what was found.

python examples/discover_classes.py [discovered.png]
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import scarcely

digits = load_digits()
images = digits.images / 16
y = np.where(digits.target < 5, digits.target, -1)  # -1: unlabelled
settings = {"stages.supervised.epochs": 8}
discoverer = scarcely.Discoverer(5, epochs=15, overrides=settings, random_state=0, accelerator="cpu")
found = discoverer.fit(images, y).labels_[y == -1] - 5

counts = np.zeros((5, 5), int)
np.add.at(counts, (found, digits.target[y == -1] - 5), 1)
figure = Figure(figsize=(5, 4.5), layout="constrained")
axis = figure.subplots()
axis.imshow(counts, cmap="Blues")
for k, row in enumerate(counts):
    for c, count in enumerate(row):
        axis.text(c, k, count, ha="center", va="center", color="white" if count > 90 else "black")
axis.set_xticks(range(5), range(5, 10))
axis.set_yticks(range(5), [f"new {k + 1}" for k in range(5)])
axis.set(xlabel="true digit, never seen with its label", ylabel="class discovered", title="Images")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "discovered.png")
