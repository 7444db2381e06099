"""Which BatchNorm follows which convolution, as the network runs them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from scarcely.adapters.layers import AdaptedConv, DomainNorm, Site


class _Image(fx.Proxy):
    """Stands for a batch of images while the network is traced."""

    def dim(self) -> int:
        """Return 4: up to the last convolution everything has that many."""
        return 4


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Site) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Image(node, self)


def followers(network: nn.Module) -> dict[AdaptedConv, DomainNorm]:
    """Return the BatchNorm into which, and nowhere else, an adapted convolution's output goes.

    The order in which modules were registered would not prove that. A network that cannot be traced,
    because what it does depends on its input, gives none.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever the code of a user's network raises when its input is symbolic
        return {}
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(network.get_submodule(str(node.target)), []).append(node)
    pairs: dict[AdaptedConv, DomainNorm] = {}
    for norm, nodes in calls.items():
        source: Any = nodes[0].args[0] if nodes[0].args else None
        if not isinstance(norm, DomainNorm) or len(nodes) > 1 or not isinstance(source, fx.Node):
            continue
        conv = network.get_submodule(str(source.target)) if source.op == "call_module" else None
        if isinstance(conv, AdaptedConv) and len(calls[conv]) == 1 and len(source.users) == 1:
            pairs[conv] = norm
    return pairs
