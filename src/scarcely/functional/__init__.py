"""Pure tensor functions: no Lightning, no configuration, no state."""
