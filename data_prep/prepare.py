"""The same as ``llmshearing prepare``, for those who keep their scripts in one place."""

import sys

from llmshearing.cli import main

if __name__ == '__main__':
    sys.exit(main(['prepare', *sys.argv[1:]]))
