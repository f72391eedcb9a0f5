"""Whoever is told that nothing was paid may take another key: so nothing may be sent any more after that."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from activities import heartbeats
from longtake.models import FailureDetails, GenerationPolicy, Paid, Stage
from longtake.temporal.names import workflow_id
from tests.end_to_end.tls_proxy import Authority
from tests.workflows.real_site import EXCHANGE, PATIENCE_SECONDS, POLICY, Site, running_site
from workflows import options

SHORT = GenerationPolicy(submit_timeout=EXCHANGE, submit_window=timedelta(seconds=1))


class HeldInTls:
    """A TLS front of the gateway that lets the first connection through, and holds the others in their handshake."""

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder, "authority")
        certificate = authority.issue("gateway")
        self.authority = authority.cert
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate.cert, certificate.key)
        self.held = asyncio.Event()
        self.let_go = asyncio.Event()
        self._connections = 0
        self._gateway = ("", 0)
        self._inner = ("", 0)
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        inner = await asyncio.start_server(self._hand_on, "127.0.0.1", 0, ssl=self._context)
        outer = await asyncio.start_server(self._hold, "127.0.0.1", 0)
        self._inner = inner.sockets[0].getsockname()
        self.url = f"https://127.0.0.1:{outer.sockets[0].getsockname()[1]}"
        async with inner, outer:
            yield

    def before(self, url: str) -> str:
        parts = urlsplit(url)
        self._gateway = (str(parts.hostname), int(parts.port or 80))
        return self.url

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        if self._connections > 1:
            self.held.set()
            await self.let_go.wait()
        await _join(reader, writer, self._inner)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _join(reader, writer, self._gateway)


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: tuple[str, int]) -> None:
    there, back = await asyncio.open_connection(*to)
    try:
        with contextlib.suppress(OSError, ssl.SSLError):
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
    finally:
        for one in (writer, back):
            one.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await one.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(2**16):
        writer.write(piece)
        await writer.drain()
    writer.close()


async def failure(site: Site, key: str) -> tuple[str | None, FailureDetails]:
    with pytest.raises(WorkflowFailureError) as ended:
        await asyncio.wait_for(site.client.get_workflow_handle(workflow_id(key)).result(), PATIENCE_SECONDS)
    cause = ended.value.cause
    assert isinstance(cause, ApplicationError)
    return cause.type, FailureDetails.model_validate(cause.details[0])


# The straggler may have ended, refused by the ledger, when the SDK comes to cancel it; it only warns of that.
@pytest.mark.filterwarnings("ignore:Cannot find activity to cancel:UserWarning")
async def test_straggler_that_is_let_go_after_it_was_called_not_sent_does_not_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in TLS when its time is over; Temporal has no way to tell it before its next heartbeat."""
    monkeypatch.setattr(options, "SUBMISSION_MARGIN", timedelta(0))
    monkeypatch.setattr(heartbeats, "INTERVAL", timedelta(minutes=1))
    front = HeldInTls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(front.authority))
    async with front.serving(), running_site(tmp_path, policy=SHORT, gateway_url=front.before) as site:
        await site.start("straggler")
        await asyncio.wait_for(front.held.wait(), PATIENCE_SECONDS)
        kind, details = await failure(site, "straggler")
        assert (kind, details.paid) == ("NotSubmitted", Paid.NO)
        front.let_go.set()
        await asyncio.sleep(3)  # its handshake, and the POST that would follow
        assert site.posts() == 0

        # The same key may be started again, and is paid once.
        await site.start("straggler")
        await site.reaches("straggler", lambda status: status.task_id)
        assert site.posts() == 1


async def test_cancelled_before_they_are_submitted_all_of_them_say_that_nothing_was_paid(tmp_path: Path) -> None:
    """So that those that really are in doubt stand out."""
    keys = [f"cancelled-{number}" for number in range(40)]
    async with running_site(tmp_path) as site:
        await asyncio.gather(*(site.start(key, "rate_limited,retry_after=600") for key in keys))
        await asyncio.gather(*(site.client.get_workflow_handle(workflow_id(key)).cancel() for key in keys))
        said = []
        for key in keys:
            with contextlib.suppress(WorkflowFailureError):
                handle = site.client.get_workflow_handle(workflow_id(key))
                await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
            status = await site.status(key)
            said.append((status.stage, status.paid))
        assert said == [(Stage.CANCELLED, Paid.NO)] * len(keys)
        assert site.sim.ledger.paid()["total"] == 0


async def test_cancelled_while_its_submission_is_in_doubt_it_says_unknown(tmp_path: Path) -> None:
    async with running_site(tmp_path, policy=POLICY) as site:
        await site.start("doubt", "submit_reset,times=1")
        await site.reaches("doubt", lambda status: status.stage is Stage.AWAITING_DECISION)
        handle = site.client.get_workflow_handle(workflow_id("doubt"))
        await handle.cancel()
        with contextlib.suppress(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        assert (await site.status("doubt")).paid is Paid.UNKNOWN
