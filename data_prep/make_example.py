"""Writes the input of the worked example: text of this Python installation, and a tokenizer trained on it.

python data_prep/make_example.py example [CHARACTERS]
"""

import sys
from pathlib import Path

from llmshearing.prepare.example import make_example

if __name__ == '__main__':
    make_example(Path(sys.argv[1]), int(float(sys.argv[2])) if len(sys.argv) > 2 else 2_000_000)
