"""``python -m orchestrator.cli`` is ``modelyard``."""

from orchestrator.cli import main

main()
