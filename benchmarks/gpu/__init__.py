"""What this project claims of a GPU, measured on the one that is there: ``python -m benchmarks.gpu``.

Without a GPU, or with ``--quick``, every part runs tiny shapes on the CPU, to see that it runs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts beside this package import each other by plain names
