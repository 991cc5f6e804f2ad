"""`python -m aisp.experiment show NAME.jsonl`: print the tables of a file of records."""

import sys

from aisp.experiment.tables import main

sys.exit(main())
