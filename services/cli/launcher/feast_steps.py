"""`python -m services.cli.launcher.feast_steps REPO START END`: apply, then materialize.

The same as `feast apply` and `feast materialize START END` by hand, in one process, because
importing feast costs seconds. A program of its own: the launcher never imports feast.
"""

from __future__ import annotations

import sys

from feast.cli.cli import cli


def main(repo: str, start: str, end: str) -> None:
    """Run both commands; the first one that fails raises."""
    cli(["--chdir", repo, "apply"], standalone_mode=False)
    cli(["--chdir", repo, "materialize", start, end], standalone_mode=False)


if __name__ == "__main__":
    main(*sys.argv[1:4])
