"""List the published models: task, data, the authors' score, parameters, and their weights.

    knet zoo

Commands take a name of it as --model.
"""

from __future__ import annotations

import argparse

from knet.cli.parser import Parser


def add_arguments(parser: Parser) -> None:
    """No flags of its own."""


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from knet.zoo import format_models

    print(format_models())
