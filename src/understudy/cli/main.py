"""The command line: parse, call a workflow, print. Exit codes: 0 done, 2 bad input, 1 failed, 130 interrupted."""

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from understudy.core.memory import keep_freed, use_huge_pages


class Command(NamedTuple):
    """A row of `understudy --help`; `module` has `config()`, and `run(config, progress) -> (data, text)`."""

    summary: str
    positional: str = ""
    """The field that may be given without its flag."""
    required: bool = False


COMMANDS = {
    "demo": Command("Train, judge and report on a small network that comes with the package."),
    "networks": Command("List the networks that come with the package, and how to name others."),
    "sites": Command("List the sites of a network: short name, module path, axes, width.", "network"),
    "train": Command("Train dictionaries on a network's activations."),
    "collect": Command("Write a network's activations to disk once, to train on as often as wanted."),
    "follow": Command("Show a run's metrics in TensorBoard or Weights & Biases while it goes on.", "run", True),
    "evaluate": Command("Run a run's dictionaries in the network's place and print the scorecard.", "run", True),
    "score": Command("Judge dictionaries that others trained, from their files, on a network.", "dictionary", True),
    "ablate": Command("Compare sparsity rules at equal L0 and equal places, as a frontier with intervals."),
    "scale": Command("Fit how loss goes with width and L0 on a small grid, and check it on the next width."),
    "transfer": Command("Try claims about dictionaries on several networks under one protocol.", "networks"),
    "export": Command("Write a run's dictionaries in the files of another library.", "run", True),
    "dictionaries": Command("List public dictionaries and the network each belongs to.", "network"),
    "holes": Command("Say where a run loses its nats, and what its errors are like.", "run", True),
    "ladder": Command("Score networks of known training compute, and say what compute a loss is worth."),
    "attribute": Command("Make the computation graph of one input: which features make which, and how true.", "run"),
    "intervene": Command("Change latents in the network, and compare with what a graph says.", "source", True),
    "view": Command("Show a graph as a page: one HTML file that needs nothing else.", "graph", True),
    "prune": Command("Make a graph smaller by what matters, and print what that costs.", "graph", True),
    "export-graph": Command("Write a graph as JSON for circuit-tracer's and Neuronpedia's viewers.", "graph", True),
    "organisms": Command("List the networks whose mechanism is known, and check that it is there."),
    "organism": Command("Write one of them to a folder: weights, truth, card.", "name"),
    "exam": Command("Score methods on organisms against the truth, beside random and untrained ones."),
    "run": Command("Run graphs of growing size in the network's place, beside rivals of their size.", "source", True),
    "report": Command("Write a run's report: one HTML file that needs nothing else.", "run", True),
    "bench step": Command("Time a training step in products of its encoder, beside other libraries."),
    "bench quality": Command("Compare held-out FVU after equal places with other libraries' at their best rates."),
    "bench graph": Command(
        "Make one graph here and with circuit-tracer, and compare edges, time and memory.", "run", True
    ),
    "bench harvest": Command("Time harvesting and shuffling of activations against the bare forward pass."),
}


REPEATING = ("train", "collect", "ablate", "scale", "bench step", "bench quality", "bench harvest")
"""Commands that do one thing over and over, in tensors of the same sizes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `understudy`; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of our own
        use_huge_pages()
        if any(" ".join(args[:words]) in REPEATING for words in (1, 2)):
            keep_freed()
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        from understudy import __version__

        print(f"understudy {__version__}")
        return 0
    as_json = "--json" in args
    try:
        words = 2 if " ".join(args[:2]) in COMMANDS else 1
        return _run(" ".join(args[:words]), [a for a in args[words:] if a != "--json"], as_json)
    except SystemExit:  # from the argument parser, which has printed the help that was asked for
        return 0
    except KeyboardInterrupt:
        return _failed("Interrupted", "interrupted", 130, as_json)
    except BrokenPipeError:
        return 1
    except Exception as error:
        from understudy.core.records.errors import UnderstudyError

        if not isinstance(error, UnderstudyError):
            import traceback

            traceback.print_exc()
            return _failed(type(error).__name__, str(error), 1, as_json)
        return _failed(type(error).__name__, str(error), error.exit_code, as_json)


def _run(name: str, args: list[str], as_json: bool) -> int:
    from understudy.core.records.errors import UnknownName

    if name not in COMMANDS:
        raise UnknownName.among("command", name, COMMANDS, "See understudy --help.")
    from understudy.cli.arguments import parse
    from understudy.cli.progress import TerminalProgress

    command = import_module(f"understudy.cli.commands.{name.replace('-', '_').replace(' ', '_')}")
    config = parse(name, COMMANDS[name], command.Config, args)
    with TerminalProgress() as progress:
        data, text = command.run(config, progress)
    if as_json:
        print(json.dumps(data, allow_nan=False))
    elif isinstance(text, str):
        print(text)
    else:
        from rich.console import Console

        Console().print(text)
    return data.get("exit_code", 0) if isinstance(data, dict) else 0


def _failed(kind: str, message: str, code: int, as_json: bool) -> int:
    print(f"{kind}: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": kind, "message": message, "exit_code": code}))
    return code


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}} {c.summary}" for name, c in COMMANDS.items())
    return (
        "usage: understudy COMMAND [options]\n\n"
        "Take a trained network apart into sparse features, run them in its place, and say honestly how well they "
        "play the part.\n\n"
        f"commands:\n{rows}\n\n"
        "everywhere:\n"
        "  --json         print exactly one JSON object on stdout; progress and messages go to stderr\n"
        "  --config FILE  read options from a YAML file; flags override it\n"
        "  -h, --help     options of a command\n\n"
        "networks: demo, demo:NAME, organism:NAME, hf:ORG/NAME, hf:PATH, py:package.module:function\n"
        "data:     stdlib, text:FILE_OR_FOLDER_OR_GLOB, hf:DATASET[:SPLIT]\n"
        "sites:    mlp, resid.*, mlp_out.3, model.layers.3.mlp:out, blocks.3.hook_mlp_out\n\n"
        "exit codes: 0 done, 2 bad input, 1 failed or not conclusive, 130 interrupted"
    )


def _exit() -> Any:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
