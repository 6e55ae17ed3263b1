"""``python -m layersync_core``: the same as the command ``layersync``."""

import sys

from layersync_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
