"""`python -m mlops`."""

import sys

try:
    from mlops.cli import main

    main()
except KeyboardInterrupt:  # so early that the command line is not there to tell it
    print("mlops: interrupted", file=sys.stderr)
    sys.exit(130)
