"""The one kind of error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend: shown as one message, exit code 2, no traceback.

    Args:
        what: what is wrong.
        where: where it was set (a config key, a file).
        instead: what would be right.
    """

    def __init__(self, what: str, *, where: str | None = None, instead: str | None = None) -> None:
        self.what, self.where, self.instead = what, where, instead
        super().__init__(what, where, instead)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:   {self.where}")
        if self.instead:
            lines.append(f"  instead: {self.instead}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling: sweeps send exceptions between processes."""
        return _rebuild, (type(self), self.what, self.where, self.instead)


def _rebuild(cls: type[UserError], what: str, where: str | None, instead: str | None) -> UserError:
    return cls(what, where=where, instead=instead)


class ConfigError(UserError):
    """The composed configuration is wrong."""


class DataError(UserError):
    """The data are missing, unreadable or do not fit."""


class WriteError(UserError):
    """A file cannot be written: a full disk, a folder of somebody else."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, unsafe or of another network."""
