"""The command ``knet``: finds the sub-command, whose flags and work are in ``knet.cli``.

It stands beside the package because importing a module of ``knet`` imports PyTorch, which takes
seconds: the list of the commands, or a slip of the pen, is answered at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

# name: what it does; the module of this name in `knet.cli` does it
COMMANDS = {
    "predict": "find objects and scenes in pictures and videos, and draw them",
    "train": "train a model, on a folder of your own or as a config says",
    "eval": "score a model on a data set: PQ, mask AP, mIoU",
    "check": "read every picture and label of a data set, and name what is wrong",
    "convert-data": "a data set as tar shards, for millions of pictures",
    "report": "an evaluation on one page for the browser",
    "export": "one graph from the picture to the results: ONNX, OpenVINO, torch.export",
    "run": "an exported model on pictures, without PyTorch",
    "convert": "checkpoints between OpenMMLab's layout and this project's",
    "kernels": "draw what each kernel does, round by round",
    "benchmark": "speed, memory and operations of a model on this machine",
    "zoo": "list the published models",
    "app": "a page for trying a model, on this machine",
}
_HELP = """usage: knet COMMAND …

K-Net: panoptic, instance and semantic segmentation.

{commands}

`knet COMMAND --help` shows the flags of a command, and an example; `knet --version` the version.
Errors are one line, with exit status 2; --traceback behind a command, or KNET_TRACEBACK=1 before
it, shows where they come from.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        arguments: its name, flags and words; those of the command line by default.

    Returns:
        The exit status: 2 for what the user can mend.

    Raises:
        SystemExit: with status 2 for a wrong flag, 0 after help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS)) + 2
        lines = (f"  {name:{width}}{text}" for name, text in COMMANDS.items())
        print(_HELP.format(commands="\n".join(lines)), end="", file=None if words else sys.stderr)
        return 0 if words else 2
    name = words[0]
    if name == "--version":
        print(f"knet {importlib.import_module('knet').__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        mean = f"; did you mean {near[0]}?" if near else f": there are {', '.join(COMMANDS)}"
        print(f"knet: error: there is no command {name}{mean}", file=sys.stderr)
        return 2
    if name == "run":
        return importlib.import_module(module_of(name)).main(words[1:])
    return importlib.import_module("knet.cli.parser").run(name, words[1:], alone=arguments is None)


def module_of(name: str) -> str:
    """The module of a command; `run` is a program of its own, which needs no PyTorch."""
    return "knet_run.__main__" if name == "run" else f"knet.cli.{name.replace('-', '_')}"


if __name__ == "__main__":
    sys.exit(main())
