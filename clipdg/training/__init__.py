"""TODO room clipdg.training."""
