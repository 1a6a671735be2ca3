"""``python -m tomecore.cli``."""

from tomecore.cli import main

main()
