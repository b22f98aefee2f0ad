"""TODO room clipdg.runs."""
