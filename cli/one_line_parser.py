"""The parser of every command."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """A wrong option is one line on stderr and exit code 2; the usage is for those who ask for it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists all options\n")
