"""Writes a checkpoint as a Hugging Face folder: the command ``llmshearing export`` as a script. See README.md."""

import sys

from llmshearing.cli import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
