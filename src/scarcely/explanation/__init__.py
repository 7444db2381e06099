"""A run that explains a classifier: the model, whole images, evaluations, maps of a folder (chapter 8)."""

from scarcely.explanation.run import explain

__all__ = ["explain"]
