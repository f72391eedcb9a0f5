"""Temporal's real UI, in a real browser, as an operator uses it. `make screenshots` keeps what it shows."""

import io
import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import BrowserContext, Locator, Page, ViewportSize, async_playwright, expect

from longtake.display import after_cancelling
from longtake.models import Paid, Stage
from tests.system.chromium import chromium
from tests.system.stage import HIDDEN, PROMPT, Play, performance

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

COLUMNS = ("VideoStage", "VideoAttention", "VideoPaid", "VideoOutcome", "VideoModel")
"""What docs/ui.md tells an operator to add to the list."""
NOT_NEEDED = ("Run ID", "Type", "End")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MILLISECONDS = 60_000
LIST: ViewportSize = {"width": 1960, "height": 780}
"""Wide enough for its columns."""
COLOURS = 192
"""Enough for a screenshot of text, in half of its bytes."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def play() -> AsyncIterator[Play]:
    # Not pytest's own folder: its name, which has the user's in it, would be in the screenshots.
    with tempfile.TemporaryDirectory(prefix="longtake-") as folder:
        async with performance(Path(folder)) as play:
            yield play


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(play: Play) -> AsyncIterator[BrowserContext]:
    """One operator's browser: its local storage keeps the list's columns."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        context = await browser.new_context(
            viewport={"width": 1440, "height": 1280}, timezone_id="UTC", reduced_motion="reduce"
        )
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        expect.set_options(timeout=PATIENCE_MILLISECONDS)
        await _choose_columns(await context.new_page(), play)
        yield context
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: BrowserContext) -> AsyncIterator[Page]:
    page = await browser.new_page()
    yield page
    await page.close()


async def _choose_columns(page: Page, play: Play) -> None:
    """Docs/ui.md: Configure Columns, then plus and minus."""
    await page.goto(f"{play.ui_url}/namespaces/default/workflows")
    await page.get_by_test_id("workflows-summary-table-configuration-button").click()
    for name in COLUMNS:
        await page.get_by_role("button", name=f"Add {name} column").click()
    for name in NOT_NEEDED:
        await page.get_by_role("button", name=f"Remove {name} column").click()
    await page.close()


async def keep(page: Page, name: str) -> None:
    """Keep what the page shows, where screenshots are wanted."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        shot = Image.open(io.BytesIO(await page.screenshot(animations="disabled")))
        shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS).save(
            Path(folder) / f"{name}.png", optimize=True
        )


async def rows(page: Page) -> dict[str, list[str]]:
    """The list's rows by workflow id: what stands in our columns."""
    heads = [text.strip() for text in await page.locator("table thead th").all_inner_texts()]
    found = {}
    for row in await page.locator("table tbody tr").all():
        cells = [text.strip() for text in await row.locator("td").all_inner_texts()]
        by_head = dict(zip(heads[-len(cells) :], cells, strict=False))
        found[by_head["Workflow ID"]] = [by_head[column] for column in COLUMNS]
    return found


async def details(page: Page, play: Play, key: str) -> str:
    """Everything on the tab that tells the story: summary, details and current details are frames of their own."""
    await page.goto(play.page(key, "user-metadata"))
    frames = page.locator('iframe[src*="/render"]')
    await expect(frames).to_have_count(3)
    told = ""
    for number in range(3):
        body = frames.nth(number).content_frame.locator("body")
        await expect(body).not_to_be_empty()
        await expect(body).not_to_have_text("No Current Details")  # until the worker has answered
        told += await body.inner_text() + "\n"
    return re.sub(r"\s+", " ", told)


def visible(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True).filter(visible=True)


async def test_list_tells_the_state_of_every_generation(page: Page, play: Play) -> None:
    await page.set_viewport_size(LIST)
    await page.goto(f"{play.ui_url}/namespaces/default/workflows")
    await expect(page.locator("table tbody tr")).to_have_count(len(play.runs) + 1)  # the ledger's registration
    fast = "veo_3_1-fast-remix"
    assert await rows(page) == {
        "longtake-ledger": ["", "", "", "", ""],
        "video-order-1001-full": ["done", "", "yes", "full", fast],
        "video-order-1002-fallback": ["done", "", "yes", "fallback", "veo_3_1-hd-remix"],
        "video-order-1003-failed": ["failed", "", "yes", "GenerationFailed", fast],
        "video-order-1004-refused": ["failed", "", "no", "SubmissionRefused", "veo_3_1-remix"],
        "video-order-1005-in-doubt": ["awaiting_decision", "needs_decision", "unknown", "", fast],
        "video-order-1006-ask": ["awaiting_decision", "needs_decision", "yes", "", fast],
        "video-order-1007-needs-key": ["first_segment", "needs_api_key", "yes", "", "veo_3_1-fast-hd-remix"],
        "video-order-1008-running": ["extending", "", "yes", "", fast],
        "video-order-1009-hidden": ["done", "", "yes", "full", fast],
    }
    await keep(page, "list")


async def test_filter_finds_what_needs_a_person(page: Page, play: Play) -> None:
    await page.set_viewport_size(LIST)
    await page.goto(f"{play.ui_url}/namespaces/default/workflows")
    await expect(page.locator("table tbody tr")).to_have_count(len(play.runs) + 1)  # the ledger's registration
    await page.get_by_test_id("toggle-manual-query").click()
    query = page.get_by_test_id("workflow-manual-search-input")
    await query.fill('VideoAttention IN ("needs_decision", "needs_api_key")')
    await query.press("Enter")
    await expect(page.locator("table tbody tr")).to_have_count(3)
    assert set(await rows(page)) == {
        "video-order-1005-in-doubt",
        "video-order-1006-ask",
        "video-order-1007-needs-key",
    }
    await keep(page, "filter")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (
            "order-1008-running",
            ["extending 61 %", "What to do: nothing; it continues by itself.", "polls:", "next poll:", "task_"],
        ),
        (
            "order-1002-fallback",
            [
                "done: only the 8 s clip: ",
                "E-2003",
                "What to do: nothing.",
                "video: file:",
            ],
        ),
        (
            "order-1003-failed",
            [
                "failed: GenerationFailed: ",
                "E-1005",
                "a new request needs a new key",
                "paid: yes",
                "first segment: video_",
            ],
        ),
        (
            "order-1005-in-doubt",
            [
                "awaiting decision: ",
                "look in the gateway's console",
                "starter.py decide order-1005-in-doubt adopt TASK_ID --slot 1",
                '{"action": "resubmit", "slot": 1}',
                "paid: unknown",
                "evidence: it was sent at",
            ],
        ),
        (
            "order-1006-ask",
            ["the 8 s clip is stored", "starter.py decide order-1006-ask accept", '{"action": "accept"}', "E-2003"],
        ),
        (
            "order-1007-needs-key",
            ["the gateway refuses the API key", "LONGTAKE_GATEWAY_API_KEY", "starter.py poll order-1007-needs-key"],
        ),
        ("order-1004-refused", ["failed: SubmissionRefused: ", "paid: no"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_page_says_what_is_going_on_and_what_to_do(page: Page, play: Play, key: str, told: list[str]) -> None:
    page_text = (await details(page, play, key)).replace("’", "'")
    assert [words for words in told if words not in page_text] == [], page_text
    assert f"key: {key}" in page_text
    assert "15 s of video by" in page_text, "the summary, from the start"
    await keep(page, f"page-{key.split('-', 2)[2]}")


async def test_every_step_has_a_summary(page: Page, play: Play) -> None:
    await page.goto(play.page("order-1001-full", "timeline"))
    for summary in (
        "check images, store and gateway; nothing is paid yet",
        "submit veo_3_1-fast-remix: paid, at most once",
        "until poll 1: first_segment",
        "poll 1",
        "deliver the 15 s video",
    ):
        await expect(page.get_by_text(summary).filter(visible=True).first).to_be_visible()
    await keep(page, "timeline")


async def test_prompts_that_are_kept_out_are_on_no_tab(page: Page, play: Play) -> None:
    shown = ""
    for tab in ("timeline", "history", "user-metadata", "search-attributes", "memo", "query", "history.json"):
        await page.goto(play.page(HIDDEN, tab))
        await page.get_by_text(HIDDEN).first.wait_for()
        await page.wait_for_load_state("networkidle")
        shown += await page.content() + "".join([await frame.content() for frame in page.frames])
    assert "prompts/" in shown, "the path is shown, so the request was"
    assert PROMPT not in shown
    # The same look at one whose prompts are not kept out, or this would prove nothing.
    await page.goto(play.page("order-1001-full", "timeline"))
    await expect(page.get_by_text(PROMPT).first).to_be_visible()


async def update(page: Page, name: str, value: str = "") -> Locator:
    """More Actions, Send an Update: everything filled in, not yet sent."""
    await visible(page, "More Actions").click()
    await page.get_by_text("Send an Update").filter(visible=True).first.click()
    form = page.get_by_test_id("update-confirmation-modal").filter(visible=True)
    await form.get_by_test_id("update-select-button").click()
    await form.get_by_role("option", name=name).click()
    if value:
        await form.locator(".cm-content").click()
        await page.keyboard.insert_text(value)
    return form


async def test_decision_sent_from_the_page_takes_effect(page: Page, play: Play) -> None:
    await details(page, play, "order-1006-ask")
    form = await update(page, "decide", '{"action": "accept"}')
    await keep(page, "decide")
    await form.get_by_test_id("confirm-modal-button").click()
    result = await play.client.result("order-1006-ask")
    assert (result.outcome, round(result.video.duration_seconds)) == ("fallback", 8)


async def test_decision_that_is_not_offered_is_refused_with_the_reason(page: Page, play: Play) -> None:
    await details(page, play, "order-1005-in-doubt")
    form = await update(page, "decide", '{"action": "accept"}')
    await form.get_by_test_id("confirm-modal-button").click()
    await expect(page.get_by_text("accept is not offered now").filter(visible=True).first).to_be_visible()
    assert (await play.client.status("order-1005-in-doubt")).stage is Stage.AWAITING_DECISION


async def test_poll_now_sent_from_the_page_polls_at_once(page: Page, play: Play) -> None:
    before = (await play.client.status("order-1007-needs-key")).polls
    await details(page, play, "order-1007-needs-key")
    form = await update(page, "poll_now")
    await form.get_by_test_id("confirm-modal-button").click()
    await play.reaches("order-1007-needs-key", lambda seen: seen.status is not None and seen.status.polls > before)


async def test_cancellation_requested_on_the_page_ends_it(page: Page, play: Play) -> None:
    await details(page, play, "order-1008-running")
    await visible(page, "Request Cancellation").click()
    await page.get_by_test_id("confirm-modal-button").filter(visible=True).click()
    ended = await play.reaches("order-1008-running", lambda seen: not seen.running)
    assert (ended.execution.state, ended.execution.stage, ended.execution.paid) == ("CANCELED", "cancelled", "yes")
    assert after_cancelling(Paid.YES) in await details(page, play, "order-1008-running")
