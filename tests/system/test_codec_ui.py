"""Temporal's own UI in a browser: an encrypted generation is unreadable, until the codec server is there."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

from longtake.temporal.key_ring import new_key
from longtake.temporal.names import workflow_id
from tests.end_to_end.conftest import simulator  # noqa: F401 - a fixture
from tests.end_to_end.processes import (
    API_KEY,
    MARK,
    SimulatorProcess,
    Starter,
    environment,
    eventually,
    flags,
    free_port,
    listens,
)
from tests.system.chromium import chromium

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def starter(simulator: SimulatorProcess, tmp_path: Path) -> Iterator[Starter]:  # noqa: F811 - the fixture
    env = environment(
        LONGTAKE_GATEWAY_URL=simulator.url,
        LONGTAKE_GATEWAY_API_KEY=API_KEY,
        LONGTAKE_DATA_DIR=str(tmp_path / "data"),
        LONGTAKE_ENCRYPTION_KEYS=new_key("k1"),
        LONGTAKE_CODEC_SERVER=f"127.0.0.1:{free_port()}",
    )
    starter = Starter(env)
    yield starter
    starter.close()


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


async def test_the_ui_shows_what_is_encrypted_through_the_codec_server(
    starter: Starter,
    page: Page,
    tmp_path: Path,
) -> None:
    prompt = f"a {MARK} in the browser [sim:ok,seconds=30,label=ui]"
    up = starter.start("up")
    state = tmp_path / "data" / "embedded" / "server.json"
    await eventually(state.exists, "the embedded server is there", unless=[up])
    made = await starter("generate", *flags(prompt), "--key", "shown", "--json", seconds=120)
    assert made.code == 0, made
    ui = json.loads(state.read_text())["ui_url"]
    asked: list[str] = []
    page.on("requestfailed", lambda request: asked.append(request.url))

    await page.goto(f"{ui}/namespaces/default/workflows/{workflow_id('shown')}/{made.json()['run_id']}/history")
    await page.get_by_text("GenerateVideo").first.wait_for(timeout=60_000)
    codec_url = f"http://{starter.env['LONGTAKE_CODEC_SERVER']}"
    for _ in range(200):
        if any(url.startswith(codec_url) for url in asked):
            break
        await page.wait_for_timeout(100)
    assert any(url.startswith(codec_url) for url in asked), "the UI asks the codec server, which is not there yet"
    assert MARK not in await page.content()

    codec = starter.start("codec-server")
    await eventually(lambda: listens(codec_url.removeprefix("http://")), "the codec server listens", unless=[codec])
    await page.reload()
    await page.get_by_text(MARK).first.wait_for(timeout=60_000)
    assert f"a {MARK} in the browser" in await page.content()
