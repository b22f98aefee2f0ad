"""``python -m clipdg``."""

from clipdg.cli import main

main()
