"""Fine-tuning: the whole network, or its last layers, go on from the source domain (chapter 3, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from scarcely.backbones.base import Backbone
from scarcely.errors import ConfigError
from scarcely.methods.domains import DomainMethod
from scarcely.methods.optimizer import Optimizer
from scarcely.spec import PositiveInt


class FineTune(DomainMethod):
    """A new classifier, and all weights or those from one of the last convolutions on.

    Args:
        backbone: the network.
        num_classes: of the domain.
        num_source: classes of the source domain.
        optimizer: optimizer and schedule.
        last: number of the last convolutions that are trained, with all that follows the first of them; the
            rest stays as it is, its BatchNorm with the source's statistics. None trains everything.

    Raises:
        ConfigError: the network has fewer convolutions.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_source: int,
        optimizer: Optimizer,
        last: PositiveInt | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, num_source, optimizer)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self._fixed = [] if last is None else _before_last(backbone, last)
        for module in self._fixed:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

    def logits(self, features: Tensor) -> Tensor:
        """Return class scores (N, C)."""
        return self.head(features)

    def train(self, mode: bool = True) -> FineTune:
        """Set the mode; what is not trained stays in eval mode, as in a feature extractor."""
        super().train(mode)
        for module in self._fixed:
            module.training = False
        return self


def _before_last(backbone: nn.Module, last: int) -> list[nn.Module]:
    """Return the layers before the last convolutions, in the order in which they were defined."""
    modules = [module for module in backbone.modules() if not any(True for _ in module.children())]
    convolutions = [i for i, module in enumerate(modules) if isinstance(module, nn.Conv2d)]
    if last > len(convolutions):
        raise ConfigError(
            f"the last {last} convolutions are to be trained, and the network has {len(convolutions)}",
            where="method.last",
            instead=f"1 to {len(convolutions)}, or null to train everything",
        )
    return modules[: convolutions[-last]]
