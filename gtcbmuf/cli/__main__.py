import sys

from gtcbmuf.cli import main

sys.exit(main())
