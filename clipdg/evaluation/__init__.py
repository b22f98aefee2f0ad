"""TODO room clipdg.evaluation."""
