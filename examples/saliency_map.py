"""See what a network looks at: NormGrad at two layers of a classifier of digits that lie anywhere.

python examples/saliency_map.py [saliency.png]
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import scarcely

digits = load_digits()
random = np.random.default_rng(0)
images = 0.3 * random.random((len(digits.images), 32, 32))  # noise, with a digit in one of nine places
for image, digit, (top, left) in zip(
    images, digits.images, random.integers(3, size=(len(images), 2)), strict=True
):
    image[8 * top : 8 * top + 16, 8 * left : 8 * left + 16] += 0.7 * digit.repeat(2, 0).repeat(2, 1) / 16

classifier = scarcely.Classifier(
    method="supervised", backbone="small_cnn", epochs=6, random_state=0, accelerator="cpu"
).fit(images[:-200], digits.target[:-200])
shown, layers = images[-200:-192], ["backbone.conv1", "backbone.conv2"]
inputs = classifier.to_tensor(shown)
maps = scarcely.saliency.attribute(classifier.network_, inputs, "predicted", layers)

figure = Figure(figsize=(9, 3.8), layout="constrained")
axes = figure.subplots(3, 8)
for axis, image, name in zip(axes[0], shown, classifier.predict(shown), strict=True):
    axis.imshow(image, cmap="gray")
    axis.set_title(f"says {name}", fontsize=9)
for row, layer in zip(axes[1:], layers, strict=True):
    for axis, saliency in zip(row, maps[layer], strict=True):
        axis.imshow(saliency.numpy(), cmap="magma")
for axis in axes.flat:
    axis.axis("off")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "saliency.png")
