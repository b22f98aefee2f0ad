"""TODO room clipdg.report.published."""
