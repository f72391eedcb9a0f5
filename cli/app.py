"""The commands of `starter.py` and their arguments. Each command imports its work when it runs: `--help` is fast."""

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from cli.output import EXIT_CODES, CommandProblem, Exit, complain, interrupted, leave

app = typer.Typer(
    name="starter.py",
    help="Generate 15-second videos with a slow, paid gateway. Never pays twice, never loses a paid video, always "
    "tells where each one stands.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich costs half of the time that --help may take
    epilog="Exit codes: " + "; ".join(f"{code:d} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The generation's idempotency key.", show_default=False)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output, nothing else.")]
DataDir = Annotated[
    Path | None,
    # Without `envvar`: a relative path means the current folder here, and is refused in the environment.
    typer.Option(
        help="The embedded server's folder. Overrides LONGTAKE_DATA_DIR.", show_default="~/.local/share/longtake"
    ),
]
OutputOption = Annotated[Path | None, typer.Option(help="Copy the video to this file or folder.")]
StrictFlag = Annotated[bool, typer.Option("--strict", help="Exit with 3 if only the 8 s clip is delivered.")]
WaitFlag = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the generation ends, or only start it.")]


@app.command()
def generate(
    *,
    model: Annotated[str | None, typer.Option(help="The model. `starter.py models` lists them.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the first 8 seconds show.")] = None,
    prompt_extend: Annotated[str | None, typer.Option(help="What the last 7 seconds show.")] = None,
    size: Annotated[str | None, typer.Option(help="1280x720, 720x1280, 1920x1080 or 1080x1920.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="A path, an https:// or http:// URL, or a data URI. Repeat it; the order counts."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            help="The idempotency key. The same key attaches to the same generation and, with the same ledger, never "
            "pays twice.",
            show_default="a new one",
        ),
    ] = None,
    on_extend_failed: Annotated[
        str | None,
        typer.Option(
            help="If the extension fails. fallback: deliver the 8 s clip. fail: end with an error. "
            "retry: pay for the extension again, where configured. ask: wait for `decide`.",
            show_default="fallback",
        ),
    ] = None,
    on_key_refused: Annotated[
        str | None,
        typer.Option(
            help="If the gateway refuses the API key, or its quota is used up. fail: end with an error. "
            "wait: submit when the key works again, however long that takes (for batches).",
            show_default="fail",
        ),
    ] = None,
    keep_first: Annotated[bool, typer.Option("--keep-first", help="Also store the first 8 s.")] = False,
    output: OutputOption = None,
    from_file: Annotated[
        str | None,
        typer.Option(help="Read the request from a JSON file, or from standard input with -. Flags override it."),
    ] = None,
    wait: WaitFlag = True,
    strict: StrictFlag = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the request and show what would be sent. Sends and pays nothing.")
    ] = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Generate one video. Submits, polls, downloads, verifies and stores it."""
    from cli.commands import generate as command
    from cli.results import ResultOptions

    flags = {
        "model": model,
        "prompt": prompt,
        "prompt_extend": prompt_extend,
        "size": size,
        "on_extend_failed": on_extend_failed,
        "on_key_refused": on_key_refused,
        "keep_first": keep_first or None,
    }
    arguments = command.GenerateArguments(
        flags={name: value for name, value in flags.items() if value is not None},
        images=tuple(image or ()),
        from_file=from_file,
        key=key,
        wait=wait,
        result=ResultOptions(output, strict, as_json),
    )
    work = command.dry_run if dry_run else command.generate
    _run(work(arguments, data_dir), as_json=as_json, key=key)


@app.command()
def status(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Show the state of a generation. Says why it is there, and what you can do."""
    from cli.commands import inspect

    _run(inspect.show_status(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def watch(key: KeyArgument, *, strict: StrictFlag = False, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Watch a generation until it ends. Ctrl-C stops watching, not the generation."""
    from cli.commands import inspect
    from cli.results import ResultOptions

    options = ResultOptions(strict=strict, as_json=as_json)
    _run(inspect.watch(key, data_dir, options), as_json=as_json, key=key)


@app.command()
def result(
    key: KeyArgument,
    *,
    output: OutputOption = None,
    strict: StrictFlag = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Wait for a generation and print its result."""
    from cli.commands import inspect
    from cli.results import ResultOptions

    options = ResultOptions(output, strict, as_json)
    _run(inspect.watch(key, data_dir, options, quiet=True), as_json=as_json, key=key)


@app.command("list")
def list_generations(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help='A list filter of Temporal, such as VideoStage="failed".')
    ] = "",
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
    paid_without_video: Annotated[
        bool, typer.Option("--paid-without-video", help="List what the ledger knows as paid and nobody has delivered.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, help="With --paid-without-video: how many days to look back.")] = 7,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """List generations. The newest come first."""
    from cli.commands import inspect

    if paid_without_video and query:
        raise typer.BadParameter("--paid-without-video takes no QUERY: it goes by the ledger")
    work = (
        inspect.show_paid_without_video(days, data_dir, as_json=as_json)
        if paid_without_video
        else inspect.show_list(query, limit, data_dir, as_json=as_json)
    )
    _run(work, as_json=as_json)


@app.command()
def cancel(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Cancel a generation. A video already submitted may still be made, and charged."""
    from cli.commands import act

    _run(act.cancel(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def poll(key: KeyArgument, *, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Poll the gateway for a generation now. For example, after you fixed or topped up the API key."""
    from cli.commands import act

    _run(act.poll(key, data_dir, as_json=as_json), as_json=as_json, key=key)


@app.command()
def decide(
    key: KeyArgument,
    action: Annotated[
        str,
        typer.Argument(
            metavar="ACTION",
            help="accept: the 8 s clip is enough. retry: pay for the extension again. adopt: continue with TASK_ID. "
            "resubmit: nothing was paid, so submit and pay again. abandon: end the generation.",
            show_default=False,
        ),
    ],
    task_id: Annotated[
        str | None, typer.Argument(metavar="TASK_ID", help="The gateway's task to adopt.", show_default=False)
    ] = None,
    *,
    slot: Annotated[
        int | None,
        typer.Option(
            min=1, help="The submission to decide about, as `status` shows it.", show_default="the one in question now"
        ),
    ] = None,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Decide how a generation continues. `status KEY` shows whether it waits for a decision, and the choices."""
    from cli.commands import act

    work = act.decide(key, (action, task_id), data_dir, slot=slot, as_json=as_json)
    _run(work, as_json=as_json, key=key)


@app.command()
def adopt(
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="The gateway's task id.", show_default=False)],
    *,
    key: Annotated[str, typer.Option(help="The idempotency key of the new generation.", show_default=False)],
    model: Annotated[str, typer.Option(help="The model that the task was submitted with.")] = "veo_3_1-fast-remix",
    on_extend_failed: Annotated[
        str, typer.Option(help="fallback, fail, retry or ask, as for `generate`.")
    ] = "fallback",
    output: OutputOption = None,
    wait: WaitFlag = True,
    strict: StrictFlag = False,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Adopt a task from another program. Polls, downloads and stores it; pays nothing."""
    from cli.commands import generate as command
    from cli.results import ResultOptions

    arguments = command.GenerateArguments(
        flags={
            "model": model,
            "prompt": "(adopted)",
            "prompt_extend": "(adopted)",
            "task_id": task_id,
            "on_extend_failed": on_extend_failed,
        },
        key=key,
        wait=wait,
        result=ResultOptions(output, strict, as_json),
    )
    _run(command.generate(arguments, data_dir), as_json=as_json, key=key)


@app.command()
def models(*, as_json: JsonFlag = False) -> None:
    """List the models. Shows what each one is for, and how many images it accepts."""
    from cli.commands.models import show_models

    show_models(as_json=as_json)


@app.command()
def doctor(*, as_json: JsonFlag = False, data_dir: DataDir = None) -> None:
    """Check the installation. Tests every configured part live and says how to fix each finding; pays nothing."""
    from cli.doctor import run

    _run(run.run(data_dir, as_json=as_json), as_json=as_json)


@app.command()
def setup(
    *,
    new_ledger: Annotated[
        bool,
        typer.Option(
            "--new-ledger",
            help="Give the namespace to this store's ledger. You pay again for keys that only the old ledger knows.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm --new-ledger without a question.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Set up Temporal's namespace. Registers the search attributes and the ledger; safe to repeat."""
    from cli.commands import setup as command

    def confirm(question: str) -> bool:
        if yes:
            typer.echo(question.removesuffix("Continue?").rstrip(), err=True)
            return True
        return sys.stdin.isatty() and typer.confirm(question, err=True)

    _run(command.setup(data_dir, new_ledger=new_ledger, confirm=confirm))


@app.command()
def recover(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Download them. Without it they are only listed.")] = False,
    ended: Annotated[
        bool, typer.Option("--ended", help="Those too that were cancelled, terminated or failed after they were paid.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, help="How many days to look back. Links expire after about one.")] = 7,
    as_json: JsonFlag = False,
    data_dir: DataDir = None,
) -> None:
    """Recover videos that Temporal has lost. Lists those paid for and not delivered; --yes downloads them, unpaid."""
    from cli.commands import recover as command

    _run(command.run(data_dir, yes=yes, ended=ended, days=days, as_json=as_json), as_json=as_json)


@app.command("encryption-key")
def encryption_key(
    key_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="The key's name, readable in Temporal.", show_default="the date")
    ] = None,
) -> None:
    """Create an encryption key. Prints it for LONGTAKE_ENCRYPTION_KEYS."""
    from datetime import UTC, datetime

    from longtake.temporal.key_ring import new_key

    try:
        typer.echo(new_key(key_id or f"{datetime.now(UTC):%Y-%m-%d}"))
    except ValueError as error:
        complain(CommandProblem(Exit.USAGE, "Usage", str(error)), as_json=False)
        leave(Exit.USAGE)


@app.command("codec-server")
def codec_server(
    *,
    unprotected: Annotated[
        bool,
        typer.Option(
            "--unprotected", help="Listen beyond loopback without a token, because a proxy in front authenticates."
        ),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Decrypt payloads for Temporal's UI. Also for the `temporal` command. Needs LONGTAKE_CODEC_SERVER."""
    from cli import codec_server as command

    _run(command.serve(data_dir, unprotected=unprotected))


@app.command()
def up(*, data_dir: DataDir = None) -> None:
    """Run the embedded server and a worker. Temporal, its UI and a worker run until Ctrl-C."""
    from cli.commands import up as command

    _run(command.up(data_dir))


@app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running until Ctrl-C.")] = False,
    videos: Annotated[Path, typer.Option(help="The folder for the MP4s.")] = Path("videos"),
    like: Annotated[Literal["document", "newapi-2026-07"], typer.Option(help="The gateway to simulate.")] = "document",
) -> None:
    """Run a demo with a simulated gateway. Four generations, a real Temporal server, real MP4s; pays nothing."""
    from cli import demo as command

    _run(command.run(videos, keep=keep, like=like))


def main() -> NoReturn:
    """Run the command line. `--json` and the exit codes also hold for errors before a command runs."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
        complain(CommandProblem(code, "Interrupted", "stopped before the command began"), as_json=as_json)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Most likely standard output; flushing it again would fail again.
        sys.stderr.write(f"{error.strerror}: the output could not be written\n")
        os._exit(Exit.USAGE)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a defect of ours: its traceback is what we need
            raise
        code = Exit.USAGE
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if len(sys.argv) == 1:
            typer.echo(message, err=True)  # no command at all: this is the help
        else:
            complain(CommandProblem(code, "Usage", f"{message} Try --help."), as_json=as_json)
    leave(code or 0)


async def _until_terminated(work: Coroutine[Any, Any, Exit]) -> Exit:
    """SIGTERM ends a command as Ctrl-C does, so that what it has started ends with it."""
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def _run(work: Coroutine[Any, Any, Exit], *, as_json: bool = False, key: str | None = None) -> None:
    """Run a command, report its error if it fails, and end the process with its exit code."""
    from cli.session import problem_of
    from longtake.observability.http_tracing import flush

    problem: CommandProblem | None = None
    try:
        code = asyncio.run(_until_terminated(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        problem = interrupted(key, found=False)  # outside the session, which knows more
    except Exception as error:
        problem = problem_of(error, {"key": key} if key else {})
        if problem is None:
            raise
    if problem:
        code = problem.code
        complain(problem, as_json=as_json)
    flush()
    with contextlib.suppress(BrokenPipeError):
        leave(code)
