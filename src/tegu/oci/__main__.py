"""`python -I -S .../tegu/oci/__main__.py`: needs no package path."""

import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(here)))
    from tegu.oci.entry import main

    sys.exit(main())
