"""Scikit-learn's manner without its base classes, which would be imported with every use of this package."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self


class Parameters:
    """Arguments of the constructor as scikit-learn reads and sets them, and what else it asks of estimators.

    A subclass stores each argument under its name and has ``fit``.
    """

    _kind: ClassVar[str | None] = None  # scikit-learn's: clusterer, classifier

    @classmethod
    def _names(cls) -> list[str]:
        return sorted(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments by name; none of them is an estimator, so `deep` changes nothing."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name and return the estimator.

        Raises:
            ValueError: it has no such argument.
        """
        for name, value in params.items():
            if name not in self._names():
                raise ValueError(
                    f"{type(self).__name__} has no argument {name!r}; it has {', '.join(self._names())}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()}
        told = [f"{k}={v!r}" for k, v in self.get_params().items() if repr(v) != repr(defaults[k])]
        return f"{type(self).__name__}({', '.join(told)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type=self._kind,
            target_tags=TargetTags(required=self._kind != "clusterer"),
            classifier_tags=ClassifierTags() if self._kind == "classifier" else None,
            input_tags=InputTags(three_d_array=True, sparse=True),
        )

    def _require_fit(self) -> None:
        """Raise scikit-learn's NotFittedError before `fit`."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
