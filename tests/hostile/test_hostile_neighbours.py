"""What neighbours of the installation could reach or read: on its network, on its disk, in its collector."""

import pytest

import worker
from longtake.temporal import TemporalProblem


@pytest.mark.parametrize(("url", "warned"), [("https://8.8.8.8", True), ("http://127.0.0.1:1", False)])
async def test_a_worker_warns_of_private_addresses_beside_a_public_gateway(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], url: str, *, warned: bool
) -> None:
    async def not_there(_: str | None) -> None:
        raise TemporalProblem("it is not there")

    monkeypatch.setattr(worker, "_connect_patiently", not_there)
    for name, value in {
        "GATEWAY_URL": url,
        "GATEWAY_API_KEY": "sk-0123456789",
        "ALLOW_PRIVATE_ADDRESSES": "true",
    }.items():
        monkeypatch.setenv(f"LONGTAKE_{name}", value)
    assert await worker.main(None, stop_with_parent=False, exit_when_idle=False) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "LONGTAKE_ALLOW_PRIVATE_ADDRESSES" in line]
    assert len(said) == warned
