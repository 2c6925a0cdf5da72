"""The command line: arguments in, one call, render out."""

from __future__ import annotations

import signal
import sys

# Until there is someone to catch it, an interrupt ends the program as the system has it: importing
# what follows is most of a short command, and Python would answer with a traceback.
_IS_PROGRAM = sys.argv[0].rpartition("/")[2] in ("modelyard", "-m")
if _IS_PROGRAM:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import difflib  # noqa: E402  # see above, as for the rest
import gc  # noqa: E402
import importlib  # noqa: E402
import os  # noqa: E402
from typing import Any  # noqa: E402

import typer  # noqa: E402
from typer.core import TyperGroup  # noqa: E402

from orchestrator.errors import ModelyardError, UsageError  # noqa: E402

COMMANDS = {
    "plan": ("specs", "Show what apply would do, and why."),
    "apply": ("apply", "Make it so: start, update or replace what the files say."),
    "merge": ("apply", "Fold the adapter that a run left into its base."),
    "diff": ("specs", "Show field by field how the files differ from what is on record."),
    "drift": ("specs", "Show where the places differ from the record; changes neither."),
    "validate": ("specs", "Check files and report every problem; needs no backend."),
    "fmt": ("specs", "Bring files into one form; what they say stays as it is."),
    "render": ("render_command", "Write what files say as native manifests; asks no place and no record."),
    "images": ("images", "List what files need from elsewhere: images and models."),
    "bundle": ("images", "Write all that files need into a folder, to be carried to where no network is."),
    "import": ("import_command", "Turn other tools' YAML into ours, and name what cannot be carried over."),
    "size": ("size", "Show what a model takes in device memory, and what holds it."),
    "catalog": ("catalog_command", "Show the facts that plans rest on, and add prices to them."),
    "schema": ("specs", "Print the JSON Schema of the documents, for editors."),
    "offers": ("places", "Show what can be had where, for how much."),
    "ps": ("runs", "List runs."),
    "top": ("top_command", "Show services live: replicas, load, tokens and cost."),
    "show": ("runs", "Show one run in full, or the hosts of a fleet."),
    "events": ("runs", "Show what happened, oldest first."),
    "logs": ("runs", "Print a run's output."),
    "exec": ("runs", "Run a command inside a running job."),
    "attach": ("runs", "Open a shell in a running job, and say where its ports answer."),
    "stop": ("runs", "End runs: drain, then terminate, then kill."),
    "delete": ("runs", "End runs and forget them."),
    "wait": ("runs", "Wait until runs are ready, started, ended or deleted."),
    "volume": ("places", "List and delete volumes."),
    "fleet": ("fleet_command", "Show machines of one's own, and empty them."),
    "gateway": ("gateway_command", "Pass requests on to the replicas of services, and scale them."),
    "server": ("server_command", "Answer for many users, and keep their runs going."),
    "sync": ("sync_command", "Show and hasten what a server applies from git."),
    "login": ("login_command", "Print a token for the server in MODELYARD_URL, good for an hour at most."),
    "token": ("users_command", "Make, list and revoke tokens."),
    "project": ("users_command", "Make projects and limit them."),
    "audit": ("users_command", "Show who changed what, oldest first."),
    "secret": ("places", "Set, list, delete and reseal secrets."),
    "backend": ("places", "Check the configured backends."),
    "gc": ("places", "Find what nobody owns, and remove it."),
    "doctor": ("places", "Look whether everything here is well."),
    "completion": ("completion", "Print a completion script for a shell."),
}
"""Every command: the module that holds it, imported when it is used, and its help."""

_THEIRS = {
    **dict.fromkeys(("ls", "list", "status", "queue", "get"), "ps"),
    **dict.fromkeys(("run", "up", "start", "serve", "deploy", "launch", "create"), "apply"),
    **dict.fromkeys(("rm", "remove", "down", "destroy"), "delete"),
    **dict.fromkeys(("kill", "cancel"), "stop"),
    **dict.fromkeys(("inspect", "describe"), "show"),
    **dict.fromkeys(("ssh", "shell"), "attach"),
    "help": "--help",
    "version": "--version",
}
"""What other tools call a command, or what they have one for."""

# typer carries its own click since 0.26: the root of its usage errors is reached through typer
_ClickError: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


class _Lazy(TyperGroup):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and build one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"orchestrator.cli.{COMMANDS[cmd_name][0]}")
        group = typer.main.get_group(module.app)
        return group.get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, with a suggestion for one that is nearly right."""
        completing = ctx.resilient_parsing  # a shell wants words, not complaints
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not completing:
            near = _THEIRS.get(args[0]) or next(iter(difflib.get_close_matches(args[0], COMMANDS, 1)), None)
            fix = f"did you mean {near!r}?" if near else "modelyard --help lists the commands"
            raise UsageError(f"no command {args[0]!r}", fix=fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # click's signature
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    cls=_Lazy,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"modelyard {version('modelyard')}")
        raise typer.Exit


@app.callback()
def modelyard(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Declare the model; Modelyard finds the GPUs, starts the containers and keeps them running."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; what went wrong is said on stderr."""
    # collecting while modules load, and once more at the end, finds nothing: a tenth of a short command
    # what stays collects again: see shared.settle
    gc.set_threshold(200_000, 20, 20)
    if _IS_PROGRAM:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run(arguments)
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code after sysexits."""
    if "_MODELYARD_COMPLETE" in os.environ:  # asked by what 'modelyard completion' printed
        from typer._completion_classes import completion_init

        completion_init()  # which typer does by itself only for programs with its own options for this
    if sys.stdout is None:  # closed by whoever called: what is said to nobody is no failure
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # --help pays for pathlib
    try:
        code = app(args=arguments, prog_name="modelyard", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except ModelyardError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # the reader has gone: that is its right, and Python's own complaint at exit is not wanted
        sys.stdout = None
        return 0
    except OSError as error:
        _complain(f"{error.filename or 'the output'}: {error.strerror or error}")
        sys.stdout = None  # what could not be written would be tried again at exit
        return 74
    except _ClickError as error:
        error.show()  # type: ignore[attr-defined]  # click's, reached without naming it
        return 64


def _complain(text: str) -> None:
    typer.echo(text, err=True)
