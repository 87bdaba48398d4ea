"""``python -m namm`` is the program ``namm``."""

from namm.cli import main

main()
