"""TODO room clipdg.weights."""
