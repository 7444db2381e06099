"""What every test begins with."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def loggers_that_speak():
    """Undo what an earlier run in this process left: Hydra disables the loggers that it finds."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("scarcely") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
