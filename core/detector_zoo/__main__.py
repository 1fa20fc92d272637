"""``python -m detector_zoo``: the command `zoo`."""

from detector_zoo.cli import main

main(prog_name="zoo")
