"""``python -m tomecore``, the same as the command ``tomecore``."""

from tomecore.cli import main

main()
