"""The commands of `starter.py`. Imports that cost time stand in the commands: `--help` answers at once."""

import asyncio
import contextlib
import errno
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from cli.output import CommandProblem, Exit, error_document, leave, print_json, typed
from longtake.display import line, lines
from longtake.temporal.key_ring import PayloadUnreadable

_ABOUT_OURSELVES = frozenset({"InvalidSettings", "Usage"})
"""Problems whose words are those of whoever typed the command, and may be several lines."""

app = typer.Typer(
    name="starter.py",
    help="15-second videos from a slow, paid gateway: never paid twice, never lost, never a mystery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich costs half of the time that --help may take
    epilog="Exit codes: 0 a video was delivered, 1 the generation failed, 2 bad usage or invalid request, "
    "3 fallback under --strict, 4 Temporal or the gateway cannot be reached, 130 interrupted.",
)

KeyArgument = Annotated[str, typer.Argument(help="The generation's key.", show_default=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, and nothing else.")]
DataDir = Annotated[
    Path | None,
    # Without `envvar`: a relative path means the current folder here, and is refused in the environment.
    typer.Option(
        help="The embedded server's folder, instead of LONGTAKE_DATA_DIR.", show_default="~/.local/share/longtake"
    ),
]


@app.command()
def generate(  # noqa: PLR0913 - one parameter for each flag
    *,
    model: Annotated[str | None, typer.Option(help="One of `starter.py models`.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the first 8 seconds show.")] = None,
    prompt_extend: Annotated[str | None, typer.Option(help="What the last 7 seconds show.")] = None,
    size: Annotated[str | None, typer.Option(help="1280x720, 720x1280, 1920x1080 or 1080x1920.")] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="A path, URL or data URI; repeatable, the order counts.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="Your own name for it: the same key again attaches and, with the same ledger, never pays again.",
            show_default="a new one",
        ),
    ] = None,
    on_extend_failed: Annotated[
        str | None,
        typer.Option(
            help="fallback: be content with the 8 s clip; fail: end with an error; "
            "retry: pay for the extension again (where configured); ask: wait for `decide`.",
            show_default="fallback",
        ),
    ] = None,
    on_key_refused: Annotated[
        str | None,
        typer.Option(
            help="fail: end where the gateway refuses the API key or it is out of quota; wait: submit once it is taken "
            "again, however long that takes (for batches).",
            show_default="fail",
        ),
    ] = None,
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Store the first 8 s beside the full video.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Copy the video here: a file, or a folder.")] = None,
    from_file: Annotated[
        str | None, typer.Option(help="The request as a JSON file, or - for standard input; flags win.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or only start it.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 where only the 8 s clip came.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show what would be sent; nothing is paid.")
    ] = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Make one video: submit, wait, download, verify, store."""
    from cli.commands import generations  # noqa: PLC0415

    flags = {
        "model": model,
        "prompt": prompt,
        "prompt_extend": prompt_extend,
        "size": size,
        "on_extend_failed": on_extend_failed,
        "on_key_refused": on_key_refused,
        "keep_first": keep_first or None,
    }
    order = generations.Order(
        flags={name: value for name, value in flags.items() if value is not None},
        images=tuple(image or ()),
        from_file=from_file,
        key=key,
        output=output,
        wait=wait,
        strict=strict,
        as_json=as_json,
    )
    work = generations.dry_run(order, data_dir) if dry_run else generations.generate(order, data_dir)
    _run(work, as_json=as_json, key=key)


@app.command()
def status(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Show where a generation stands, why, and what can be done."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.show_status(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def watch(
    key: KeyArgument,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on a fallback.")] = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Follow a generation until it ends; stopping to watch stops nothing else."""
    from cli.commands import generations  # noqa: PLC0415

    work = generations.watch(key, data_dir, strict=strict, as_json=as_json)
    _run(work, as_json=as_json, key=key)


@app.command()
def result(
    key: KeyArgument,
    *,
    output: Annotated[Path | None, typer.Option(help="Copy the video here: a file, or a folder.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on a fallback.")] = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Wait for a generation's end and print its result."""
    from cli.commands import generations  # noqa: PLC0415

    work = generations.watch(key, data_dir, strict=strict, as_json=as_json, output=output, quiet=True)
    _run(work, as_json=as_json, key=key)


@app.command("list")
def list_generations(
    query: Annotated[str, typer.Argument(help='A filter of Temporal\'s, such as VideoStage="failed".')] = "",
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """List the newest generations."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.show_list(query, limit, data_dir, as_json=as_json), as_json=as_json)


@app.command()
def cancel(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Stop waiting for a generation; what was submitted may still be made, and cost."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.cancel(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def poll(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Ask the gateway about a generation now, for example because its key has been mended or topped up."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.poll_now(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def decide(  # noqa: PLR0913 - one parameter for each flag
    key: KeyArgument,
    action: Annotated[
        str,
        typer.Argument(
            help="accept (the 8 s clip), retry (the extension, paid), adopt (a task id), "
            "resubmit (nothing was paid), abandon.",
            show_default=False,
        ),
    ],
    task_id: Annotated[str | None, typer.Argument(help="The task to adopt.", show_default=False)] = None,
    *,
    slot: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The submission that the decision is about, as `status` shows it.",
            show_default="the one that is asked about now",
        ),
    ] = None,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Take a decision that a generation waits for; `status KEY` shows which."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.decide(key, action, task_id, data_dir, slot=slot, as_json=as_json), as_json=as_json, key=key)


@app.command()
def adopt(  # noqa: PLR0913 - one parameter for each flag
    task_id: Annotated[str, typer.Argument(help="The gateway's task id.", show_default=False)],
    *,
    key: Annotated[str, typer.Option(help="The name it gets here.", show_default=False)],
    model: Annotated[str, typer.Option(help="The model it was submitted with.")] = "veo_3_1-fast-remix",
    on_extend_failed: Annotated[str, typer.Option(help="fallback, fail, retry or ask.")] = "fallback",
    output: Annotated[Path | None, typer.Option(help="Copy the video here: a file, or a folder.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or only start it.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 on a fallback.")] = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Take over a task that something else submitted: watch it, download it, store it. Nothing is paid."""
    from cli.commands import generations  # noqa: PLC0415

    order = generations.Order(
        flags={
            "model": model,
            "prompt": "(adopted)",
            "prompt_extend": "(adopted)",
            "task_id": task_id,
            "on_extend_failed": on_extend_failed,
        },
        images=(),
        from_file=None,
        key=key,
        output=output,
        wait=wait,
        strict=strict,
        as_json=as_json,
    )
    _run(generations.generate(order, data_dir), as_json=as_json, key=key)


@app.command()
def models(*, as_json: JsonFlag = False) -> None:
    """Show the eight models and what each takes."""
    from cli.commands import models as catalogue  # noqa: PLC0415

    catalogue.show_models(as_json=as_json)


@app.command()
def doctor(*, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Check every part that is set up against the live one; say what to do for each finding. Nothing is paid."""
    from cli.doctor import run as checks  # noqa: PLC0415

    _run(checks.run(data_dir, as_json=as_json), as_json=as_json)


@app.command()
def setup(
    *,
    new_ledger: Annotated[
        bool,
        typer.Option(
            "--new-ledger",
            help="The namespace belongs to this store's ledger from now on; keys of another one are paid again.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --new-ledger is meant.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Register search attributes and the ledger in Temporal's namespace; doing it again changes nothing."""
    from cli.commands import generations  # noqa: PLC0415

    def confirm(question: str) -> bool:
        if yes:
            typer.echo(question.removesuffix("Is that meant?").rstrip(), err=True)
            return True
        return sys.stdin.isatty() and typer.confirm(question, err=True)

    _run(generations.setup(data_dir, new_ledger=new_ledger, confirm=confirm))


@app.command()
def recover(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Start them again; otherwise they are only listed.")] = False,
    days: Annotated[int, typer.Option(min=1, help="How far to look back; links live about a day.")] = 7,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Find videos that were paid for, not delivered, and lost by Temporal; with --yes fetch them. Nothing is paid."""
    from cli.commands import recover as recovery  # noqa: PLC0415

    _run(recovery.run(data_dir, yes=yes, days=days, as_json=as_json), as_json=as_json)


@app.command("encryption-key")
def encryption_key(
    key_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The key's name, readable in Temporal.", show_default="the date")
    ] = None,
) -> None:
    """Make a new key for LONGTAKE_ENCRYPTION_KEYS and print it."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from longtake.temporal.key_ring import new_key  # noqa: PLC0415

    try:
        typer.echo(new_key(key_id or f"{datetime.now(UTC):%Y-%m-%d}"))
    except ValueError as error:
        _complain(CommandProblem(Exit.USAGE, "Usage", str(error)))
        leave(Exit.USAGE)


@app.command("codec-server")
def codec_server(
    *,
    unprotected: Annotated[
        bool,
        typer.Option(
            "--unprotected", help="Listen beyond loopback without a token: something in front keeps others out."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Decrypt for Temporal's UI and the `temporal` command, until Ctrl-C; needs LONGTAKE_CODEC_SERVER."""
    from cli import codec_server as codec  # noqa: PLC0415

    work = codec.serve(data_dir, unprotected=unprotected, announce=lambda said: typer.echo(said, err=True))
    _run(work)


@app.command()
def up(*, data_dir: DataDir = None) -> None:
    """Run everything embedded in the foreground: Temporal, its UI and a worker, until Ctrl-C."""
    from cli.commands import generations  # noqa: PLC0415

    _run(generations.up(data_dir))


@app.command()
def demo(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers running to look around, until Ctrl-C.")
    ] = False,
    videos: Annotated[Path, typer.Option(help="Where the MP4s go.")] = Path("videos"),
    like: Annotated[
        Literal["document", "newapi-2026-07"], typer.Option(help="Which gateway the simulated one is like.")
    ] = "document",
) -> None:
    """Run four generations side by side against a simulated gateway, a real Temporal server and real MP4s."""
    from cli import demo as show  # noqa: PLC0415

    _run(show.run(videos, keep=keep, like=like))


def main() -> NoReturn:
    """Run the command line; what goes wrong before a command is at work keeps the rules of `--json` and exit codes."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
        _complain(CommandProblem(code, "Interrupted", "stopped before it began"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Most likely standard output; to flush it once more would fail once more.
        sys.stderr.write(f"{error.strerror}: what was to be said could not be written\n")
        os._exit(Exit.USAGE)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a defect of ours: its traceback is what we need
            raise
        code = Exit.USAGE
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if len(sys.argv) == 1:
            typer.echo(message, err=True)  # no command at all: this is the help
        else:
            _complain(CommandProblem(code, "Usage", f"{message} Try --help."))
    leave(code or 0)


def _shown(problem: CommandProblem) -> str:
    """What goes wrong, in lines of our own making."""
    own_lines = problem.own_lines or problem.kind in _ABOUT_OURSELVES
    return f"{problem.kind}: {lines(problem.message) if own_lines else line(problem.message)}"


def _complain(problem: CommandProblem) -> None:
    if "--json" in sys.argv:
        print_json(error_document(problem, {}))
    else:
        typer.echo(_shown(problem), err=True)


def _run(work: Coroutine[Any, Any, Exit], *, as_json: bool = False, key: str | None = None) -> None:
    """Run a command to its exit code."""
    from longtake.observability.http_tracing import flush  # noqa: PLC0415
    from longtake.settings import SettingsProblem  # noqa: PLC0415 - the command has loaded both already

    try:
        code = asyncio.run(work)
    except SettingsProblem as problem:  # such as traces that are wanted and cannot be written
        code = Exit.USAGE
        _complain(CommandProblem(code, "InvalidSettings", str(problem)))
    except CommandProblem as problem:
        code = problem.code
        known = problem.known or ({"key": key} if key else {})
        if as_json:
            print_json(error_document(problem, known))
        else:
            typer.echo(_shown(problem), err=True)
            if problem.details and problem.details.advice:
                typer.echo(line(problem.details.advice), err=True)
    except PayloadUnreadable as error:
        code = Exit.USAGE
        _complain(CommandProblem(code, "PayloadUnreadable", str(error)))
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
        if key and not as_json:
            typer.echo(f"stopped waiting; to go on where it was: {typed('watch', key)}", err=True)
        if as_json:
            interrupted = CommandProblem(code, "Interrupted", "stopped waiting; start it again with the same key")
            print_json(error_document(interrupted, {"key": key} if key else {}))
    flush()
    with contextlib.suppress(BrokenPipeError):
        leave(code)
