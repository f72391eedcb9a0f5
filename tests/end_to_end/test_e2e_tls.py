"""TLS, mTLS and API keys, by profiles and by variables: a TLS front stands before the dev server, as in a cluster.

It can also be a cluster whose OperatorService is not for its clients, as Temporal Cloud's is.
"""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cli.embedded import temporal_binary
from longtake.temporal.connection_errors import explain
from longtake.temporal.names import SEARCH_ATTRIBUTES
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
OPERATOR_SERVICE = "temporal.api.operatorservice.v1.OperatorService"
PERMISSION_DENIED, UNIMPLEMENTED = 7, 12
"""gRPC's numbers."""
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


async def test_what_keeps_a_connection_from_being_made_is_reported(
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
            "set TEMPORAL_TLS_SERVER_CA_CERT_PATH": fronts.variables(tls) | theirs,
            "its certificate has expired": fronts.variables(expired),
            "set TEMPORAL_TLS_CLIENT_CERT_PATH": fronts.variables(mutual),
            "it rejects the client certificate": fronts.variables(mutual, fronts.expired_client),
            "it refuses the API key": fronts.variables(keyed, TEMPORAL_API_KEY="another-key"),
            "its certificate is for another name": fronts.variables(tls, TEMPORAL_TLS_SERVER_NAME="else.example"),
            "set TEMPORAL_TLS=true": {"TEMPORAL_ADDRESS": tls},
            "it does not speak TLS": fronts.variables(temporal.address),
            "Temporal's profile names": fronts.variables(
                tls, Certificate(tmp_path / "nobody.pem", tmp_path / "nobody.key")
            ),
        }
        worker = WorkerProcess(tmp_path, base | cases["set TEMPORAL_TLS_CLIENT_CERT_PATH"])
        stack.callback(worker.stop)
        worker.start()
        turn = asyncio.Semaphore(3)

        async def ends(variables: dict[str, str]) -> Finished:
            async with turn:
                return await starter.but(**variables)("list", "--json")

        runs = dict(zip(cases, await asyncio.gather(*map(ends, cases.values())), strict=True))
        for mention, run in runs.items():
            error = run.json()["error"]
            assert (run.code, error["type"], run.err) == (4, "TemporalUnreachable", ""), run
            assert mention in error["message"]
            assert "another-key" not in run.out
        assert await worker.ended() == 1
        assert "set TEMPORAL_TLS_CLIENT_CERT_PATH" in worker.log()
        assert "Traceback" not in worker.log()


@pytest.mark.timeout(240)  # a dozen processes, one after the other
async def test_a_cluster_whose_operator_service_is_not_for_its_clients(
    fronts: Fronts, starter: Starter, temporal: DevServer, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    there, *lacking = SEARCH_ATTRIBUTES
    prompt = f"a {MARK} [sim:ok,seconds=30,label=cloud]"
    await operator(temporal, "namespace", "create", "--namespace", "cloud")
    await make(temporal, there)
    async with AsyncExitStack() as stack:

        async def client_of_a_cluster(says: int) -> tuple[Starter, Seen]:
            front = tls_proxy(temporal.address, fronts.server, api_key=KEY, closed_service=(OPERATOR_SERVICE, says))
            address, seen = await stack.enter_async_context(front)
            given = fronts.variables(address, TEMPORAL_API_KEY=KEY, TEMPORAL_NAMESPACE="cloud")
            return starter.but(**given), seen

        cloud, seen = await client_of_a_cluster(PERMISSION_DENIED)
        without, _ = await client_of_a_cluster(UNIMPLEMENTED)
        worker = WorkerProcess(tmp_path, cloud.env)
        stack.callback(worker.stop)

        # One is there, and the others are not: each part names them, and what to do.
        worker.start()
        doctor, *setups = await asyncio.gather(cloud("doctor"), cloud("setup"), without("setup"))
        assert await worker.ended() == 2
        errors = [line for line in worker.log().splitlines() if "lacks the search attributes" in line]
        assert len(errors) == 1, worker.log()
        findings = [line for line in doctor.out.splitlines() if "search attributes: " in line]
        assert doctor.code == 1, doctor
        assert len(findings) == 1, doctor
        assert findings[0].startswith("problem")
        assert "May this connection ask for it?" not in doctor.out, "it may, and the attributes are what is missing"
        assert [setup.code for setup in setups] == [2, 2]
        for text in (*errors, *findings, *(setup.err for setup in setups)):
            assert [name for name in SEARCH_ATTRIBUTES if name in text] == lacking, text
            assert "Keyword" in text
        assert {f"/{OPERATOR_SERVICE}/ListSearchAttributes", f"/{OPERATOR_SERVICE}/AddSearchAttributes"} <= seen.calls

        # Made with the cluster's own tools.
        await make(temporal, *lacking)
        for setup in await asyncio.gather(cloud("setup"), without("setup")):
            assert (setup.code, setup.err) == (0, ""), setup
            assert "registered already" in setup.out
        await worker.restart()
        made = await cloud("generate", *flags(prompt), "--key", "cloud", "--json")
        assert (made.code, made.json()["outcome"]) == (0, "full"), made
        assert simulator.paid(prompt) == 1
        doctor = await cloud("doctor")
        assert "ok       search attributes: the namespace has all of them" in doctor.out, doctor
        assert doctor.code == 0, doctor
        assert KEY not in worker.log() + made.err + doctor.out


async def make(server: DevServer, *attributes: str) -> None:
    """Make search attributes as an operator does, past the front."""
    names = [part for name in attributes for part in ("--name", name, "--type", "Keyword")]
    await operator(server, "search-attribute", "create", "--namespace", "cloud", *names)


async def operator(server: DevServer, *arguments: str) -> None:
    command = [temporal_binary(), "operator", *arguments, "--address", server.address]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


CLOSED = (
    # What the SDK's core said when a server closed the connection in the middle of the handshake or just after it.
    'hyper::Error(Io, Custom { kind: UnexpectedEof, error: "peer closed connection without sending TLS close_notify"',
    "hyper::Error(Canceled, hyper::Error(Io, Custom { kind: BrokenPipe",
    "hyper::Error(Canceled)",
)


@pytest.mark.parametrize("how", CLOSED)
def test_a_connection_that_is_closed_early_is_understood_however_it_shows(how: str) -> None:
    said = f"call error after connection: Status {{ source: Some(tonic::transport::Error(Transport, {how}"
    assert "TEMPORAL_TLS_CLIENT_CERT_PATH" in explain(said, tls=True, client_certificate=False)
    assert "TEMPORAL_TLS" in explain(said, tls=False, client_certificate=False)


@pytest.mark.parametrize("alert", ["CertificateRequired", "CertificateExpired", "UnknownCA"])
def test_what_a_server_says_outright_is_understood_too(alert: str) -> None:
    said = f'hyper::Error(Io, Custom {{ kind: InvalidData, error: "received fatal alert: {alert}" }})'
    assert "client certificate" in explain(said, tls=True, client_certificate=alert != "CertificateRequired")
