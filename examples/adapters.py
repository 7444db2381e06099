"""Teach a torchvision network a second domain with adapters: python examples/adapters.py [adapters.png]"""

import sys

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models import resnet18

from scarcely.adapters import attach

torch.manual_seed(0)
images, y = map(torch.tensor, load_digits(return_X_y=True))
upright = interpolate(images.float().view(-1, 1, 8, 8) / 16, 16).repeat(1, 3, 1, 1)
turned = 1 - upright.rot90(1, (2, 3))  # the second domain: black on white, and on its side


def learn(network, parameters, x):
    """Train these parameters on the first 1,300 images."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for batch in torch.randint(1300, (45, 64)):
        optimizer.zero_grad()
        cross_entropy(network.train()(x[batch]), y[batch]).backward()
        optimizer.step()


def accuracy(network, x):
    """Return the share of the other images that is right."""
    return float((network.eval()(x[1300:]).argmax(1) == y[1300:]).float().mean())


network = resnet18(num_classes=10)
learn(network, network.parameters(), upright)
adapted = attach(network, "parallel", {"turned": 10}, source="upright")  # a copy; what it shares is frozen
learn(adapted, adapted.trainable_parameters(), turned)
scores = {"turned,\nbefore": accuracy(network, turned), "turned,\nadapters": accuracy(adapted, turned)}
with adapted.domain("upright"):
    scores["upright,\nas before"] = accuracy(adapted, upright)
adapted.merge()  # into the convolutions: as fast as the network that came
scores["turned,\nmerged"] = accuracy(adapted, turned)
axis = Figure(figsize=(6, 3), layout="constrained").subplots()
axis.bar_label(axis.bar(list(scores), list(scores.values())), [f"{score:.0%}" for score in scores.values()])
axis.set(ylim=(0, 1.1), ylabel="accuracy", title="A second domain, and nothing forgotten")
axis.figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "adapters.png")
