"""Turns a state dict of the first Sheared LLaMA code into a Hugging Face folder: ``llmshearing import`` as a script.

See README.md.
"""

import sys

from llmshearing.cli import main

if __name__ == '__main__':
    sys.exit(main(['import', *sys.argv[1:]]))
