"""The commands `generate` and `adopt`: check the request, start or attach, follow, fetch the video."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import known_ledgers
from cli.commands.request import build_request, new_key, read_request_file
from cli.output import CommandProblem, Exit, print_json, say, write
from cli.progress import follow
from cli.results import ResultOptions, report
from cli.session import ids_of, load_settings, open_session, open_store
from longtake.gateway.client import GatewayClient
from longtake.gateway.errors import GatewayError, GatewayUnreachable, KeyRefused
from longtake.gateway.preflight import Preflight
from longtake.models import FailureDetails, OnKeyRefused, Paid
from longtake.request.rules import warnings_for
from longtake.settings import Settings
from longtake.storage import Store
from longtake.submission.errors import LedgerError
from longtake.temporal.connection import is_configured


@dataclass(frozen=True)
class GenerateArguments:
    """The arguments of `generate`.

    Attributes:
        flags: The fields of the request that were given as flags.
        images: Paths, URLs and data URIs, in order.
        from_file: A JSON file with the request, or `-` for standard input; flags override it.
        key: The idempotency key; a new one where it is None.
        wait: Wait until the generation ends.
        result: What to do with the result.
    """

    flags: dict[str, Any]
    images: tuple[str, ...] = ()
    from_file: str | None = None
    key: str | None = None
    wait: bool = True
    result: ResultOptions = field(default_factory=ResultOptions)

    def fields(self) -> dict[str, Any]:
        """The request, without the images given as flags.

        Raises:
            CommandProblem: The file cannot be read.
        """
        return {**(read_request_file(self.from_file) if self.from_file else {}), **self.flags}


async def generate(arguments: GenerateArguments, data_dir: Path | None) -> Exit:
    """Run `generate`."""
    settings = load_settings(data_dir)
    ids = ids_of(arguments.key or new_key())
    key, quiet = str(ids["key"]), arguments.result.as_json
    arguments.result.check()
    store = open_store(settings)
    request, _ = await build_request(
        arguments.fields(),
        arguments.images,
        store,
        dry_run=False,
        hide_prompts=settings.hide_prompts,
        key=arguments.key,
    )
    if not is_configured():
        await check_gateway(settings, wait_for_key=request.on_key_refused is OnKeyRefused.WAIT)
    session_of = open_session(settings, worker=True, stay_behind=not arguments.wait, store=store, ids=ids)
    async with session_of as session:
        await show_ledger(settings, store, quiet=quiet)
        await _warn_of_other_ledgers(key, store)
        run_id, started = await session.client.start(key, request)
        ids["run_id"] = run_id
        if not quiet:
            for warning in warnings_for(request):
                say(f"warning: {warning}")
            link = session.link(key, run_id)
            say(f"{'started' if started else 'attached to'} {key}" + (f", {link}" if link else ""))
        if not arguments.wait:
            if quiet:
                print_json({**ids, "started": started})
            else:
                write(key)
            return Exit.DELIVERED
        await follow(session.client, key, quiet=quiet)
        result = await session.client.result(key)
    return await report(result, store, ids, arguments.result)


async def dry_run(arguments: GenerateArguments, data_dir: Path | None) -> Exit:
    """Run `generate --dry-run`."""
    settings = load_settings(data_dir)
    key = ids_of(arguments.key or new_key())["key"]
    arguments.result.check()
    request, images = await build_request(
        arguments.fields(), arguments.images, open_store(settings), dry_run=True, key=arguments.key
    )
    warnings = warnings_for(request)
    sent = {
        "url": f"{settings.gateway_url}/v1/videos" if settings.gateway_url else None,
        "model": request.model,
        "prompt_characters": len(request.prompt),
        "prompt_extend_characters": len(request.prompt_extend),
        "size": request.size,
        "images": images,
        "on_extend_failed": str(request.on_extend_failed),
        "on_key_refused": str(request.on_key_refused),
    }
    if arguments.result.as_json:
        print_json({"dry_run": True, "paid": "no", "key": key, "request": sent, "warnings": list(warnings)})
        return Exit.DELIVERED
    for name, value in sent.items():
        write(f"{name}: {'not given' if value is None else value}")
    for warning in warnings:
        say(f"warning: {warning}")
    write("the request is valid; nothing was sent, nothing was paid")
    return Exit.DELIVERED


async def show_ledger(settings: Settings, store: Store, *, quiet: bool = False) -> None:
    """Print where data folder and ledger are, and remember the ledger: a key is safe with one ledger only.

    Raises:
        CommandProblem: The ledger cannot be read.
    """
    try:
        identity = await known_ledgers.remember(store)
    except LedgerError as error:
        raise CommandProblem(Exit.USAGE, "LedgerUnavailable", str(error)) from None
    if not quiet:
        folder = "" if is_configured() else f"data folder {settings.data_dir}, "
        say(f"{folder}ledger {identity or '(none yet: the first worker creates it)'} in {store.url}")


async def _warn_of_other_ledgers(key: str, store: Store) -> None:
    """Warn, even with --json, because it costs money."""
    for url in await known_ledgers.elsewhere(key, store):
        say(
            f"warning: another ledger of yours, {url}, knows the key {key}. Here you PAY AGAIN for it. If you want the "
            "video of that ledger, cancel this generation and use that data folder or store"
        )


async def check_gateway(settings: Settings, *, wait_for_key: bool) -> None:
    """Find out at once, instead of after an hour of retries, that this machine cannot submit.

    Raises:
        SettingsProblem: The gateway is not configured.
        CommandProblem: The gateway does not answer, is no gateway, or refuses the key that nobody wants to wait for.
    """
    base_url, keys = settings.require_gateway()
    try:
        async with GatewayClient(base_url=base_url, api_keys=keys) as gateway:
            await Preflight(gateway).check()
    except ValueError as error:
        raise CommandProblem(Exit.USAGE, "InvalidSettings", str(error)) from None
    except GatewayError as error:
        match error:
            case KeyRefused():
                if wait_for_key:
                    return
                code, kind = Exit.USAGE, "SubmissionRefused"
            case GatewayUnreachable():
                code, kind = Exit.UNREACHABLE, "GatewayUnreachable"
            case _:
                code, kind = Exit.UNREACHABLE, "NotAGateway"
        details = FailureDetails(
            paid=Paid.NO,
            http_status=error.status,
            gateway_code=error.code,
            gateway_message=error.gateway_message,
            request_id=error.request_id,
        )
        raise CommandProblem(code, kind, f"{error}; nothing was paid", details) from None
