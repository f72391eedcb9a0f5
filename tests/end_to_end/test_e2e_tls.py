"""TLS, mTLS and API keys, by profiles and by variables: a TLS front stands before the dev server, as in a cluster."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from longtake.connecting import explain
from tests.end_to_end.processes import (
    MARK,
    DevServer,
    Finished,
    SimulatorProcess,
    Starter,
    WorkerProcess,
    eventually,
    flags,
)
from tests.end_to_end.tls_proxy import Authority, Certificate, Seen, tls_proxy

pytestmark = pytest.mark.system

KEY = "an-api-key-of-temporal-cloud"
POLL = "/temporal.api.workflowservice.v1.WorkflowService/PollWorkflowTaskQueue"


class Fronts:
    """The TLS fronts of one server, and who may pass them."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = Authority(folder, "ours"), Authority(folder, "theirs")
        self.server = self.ours.issue("server")
        self.expired = self.ours.issue("expired", expired=True)
        self.client = self.ours.issue("client", client=True)
        self.expired_client = self.ours.issue("expired-client", client=True, expired=True)

    def variables(self, address: str, client: Certificate | None = None, **more: str) -> dict[str, str]:
        """By `TEMPORAL_*` variables."""
        given = {"TEMPORAL_ADDRESS": address, "TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(self.ours.cert)}
        if client:
            given["TEMPORAL_TLS_CLIENT_CERT_PATH"] = str(client.cert)
            given["TEMPORAL_TLS_CLIENT_KEY_PATH"] = str(client.key)
        return given | more


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Fronts:
    return Fronts(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def base(distributed: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in distributed.items() if not name.startswith("TEMPORAL_")} | {
        "TEMPORAL_CONFIG_FILE": "/dev/null"
    }


@pytest.fixture
def starter(base: dict[str, str]) -> Iterator[Starter]:
    starter = Starter(base)
    yield starter
    starter.close()


@pytest.mark.timeout(240)  # three processes start one after the other
async def test_a_generation_over_mutual_tls_and_with_an_api_key(
    fronts: Fronts, starter: Starter, temporal: DevServer, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    prompt = f"a {MARK} [sim:ok,seconds=30,label=tls]"
    async with AsyncExitStack() as stack:
        secured = tls_proxy(temporal.address, fronts.server, client_authority=fronts.ours.cert, api_key=KEY)
        address, seen = await stack.enter_async_context(secured)
        # The worker by variables; the command line by a profile of a TOML file.
        worker = WorkerProcess(tmp_path, starter.env | fronts.variables(address, fronts.client, TEMPORAL_API_KEY=KEY))
        stack.callback(worker.stop)
        worker.start()
        await asyncio.to_thread(profile(tmp_path).write_text, PROFILE.format(address=address, fronts=fronts, key=KEY))
        by_profile = starter.but(TEMPORAL_CONFIG_FILE=str(profile(tmp_path)), TEMPORAL_PROFILE="cloud")
        doctor = await by_profile("doctor")
        assert f"ok       Temporal: {address}, namespace default, TLS" in doctor.out, doctor
        await eventually(worker.ready, "the worker polls")
        made = await by_profile("generate", *flags(prompt), "--key", "over-tls", "--json")
        assert (made.code, made.json()["outcome"]) == (0, "full"), made
        assert simulator.paid(prompt) == 1
        assert POLL in seen.calls, "the worker went through the front too"
        assert (seen.client_certificates, seen.authorizations) == ({"client"}, {f"Bearer {KEY}"})
        assert KEY not in worker.log() + made.err + doctor.out


def profile(folder: Path) -> Path:
    return folder / "temporal.toml"


PROFILE = """\
[profile.cloud]
address = "{address}"
namespace = "default"
api_key = "{key}"

[profile.cloud.tls]
server_ca_cert_path = "{fronts.ours.cert}"
client_cert_path = "{fronts.client.cert}"
client_key_path = "{fronts.client.key}"
"""


async def test_what_keeps_a_connection_from_being_made_is_said(
    fronts: Fronts, base: dict[str, str], starter: Starter, temporal: DevServer, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:

        async def front(server: Certificate, **options: object) -> tuple[str, Seen]:
            return await stack.enter_async_context(tls_proxy(temporal.address, server, **options))  # type: ignore[arg-type]

        tls, _ = await front(fronts.server)
        expired, _ = await front(fronts.expired)
        mutual, _ = await front(fronts.server, client_authority=fronts.ours.cert)
        keyed, _ = await front(fronts.server, api_key=KEY)
        theirs = {"TEMPORAL_TLS_SERVER_CA_CERT_PATH": str(fronts.theirs.cert)}
        cases = {
            "its certificate is of an authority that is not trusted here": fronts.variables(tls) | theirs,
            "its certificate has expired": fronts.variables(expired),
            "it asks for a client certificate": fronts.variables(mutual),
            "it does not take the client certificate; has it expired": fronts.variables(mutual, fronts.expired_client),
            "it refuses the API key": fronts.variables(keyed, TEMPORAL_API_KEY="another-key"),
            "its certificate is for another name": fronts.variables(tls, TEMPORAL_TLS_SERVER_NAME="else.example"),
            "if it wants TLS": {"TEMPORAL_ADDRESS": tls},
            "it does not speak TLS": fronts.variables(temporal.address),
            "Temporal's profile names": fronts.variables(
                tls, Certificate(tmp_path / "nobody.pem", tmp_path / "nobody.key")
            ),
        }
        worker = WorkerProcess(tmp_path, base | cases["it asks for a client certificate"])
        stack.callback(worker.stop)
        worker.start()
        turn = asyncio.Semaphore(3)

        async def ends(variables: dict[str, str]) -> Finished:
            async with turn:
                return await starter.but(**variables)("list", "--json")

        runs = dict(zip(cases, await asyncio.gather(*map(ends, cases.values())), strict=True))
        for told, run in runs.items():
            error = run.json()["error"]
            assert (run.code, error["type"], run.err) == (4, "TemporalUnreachable", ""), run
            assert told in error["message"]
            assert "TEMPORAL_" in error["message"] or "renewed" in error["message"] or "nobody" in error["message"]
            assert "another-key" not in run.out
        assert await worker.ended() == 1
        assert "it asks for a client certificate, set TEMPORAL_TLS_CLIENT_CERT_PATH" in worker.log()
        assert "Traceback" not in worker.log()


CLOSED = (
    # What the SDK's core said when a server closed the connection in the middle of the handshake or just after it.
    'hyper::Error(Io, Custom { kind: UnexpectedEof, error: "peer closed connection without sending TLS close_notify"',
    "hyper::Error(Canceled, hyper::Error(Io, Custom { kind: BrokenPipe",
    "hyper::Error(Canceled)",
)


@pytest.mark.parametrize("how", CLOSED)
def test_a_connection_that_is_closed_early_is_understood_however_it_shows(how: str) -> None:
    said = f"call error after connection: Status {{ source: Some(tonic::transport::Error(Transport, {how}"
    assert "asks for a client certificate" in explain(said, tls=True, client_certificate=False)
    assert "wants TLS" in explain(said, tls=False, client_certificate=False)


@pytest.mark.parametrize("alert", ["CertificateRequired", "CertificateExpired", "UnknownCA"])
def test_what_a_server_says_outright_is_understood_too(alert: str) -> None:
    said = f'hyper::Error(Io, Custom {{ kind: InvalidData, error: "received fatal alert: {alert}" }})'
    assert "client certificate" in explain(said, tls=True, client_certificate=alert != "CertificateRequired")
