"""TODO room clipdg.storage."""
