import io
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from simulator import Simulator
from simulator.scenarios import SCENARIOS


def inspect(content: bytes) -> tuple[int, int, int, bool, str]:
    with av.open(io.BytesIO(content), "r") as file:
        video = file.streams.video[0]
        assert file.duration is not None
        assert video.average_rate == 24
        frames = len(list(file.decode(video=0)))
        assert frames == round(file.duration / av.time_base) * 24
        seconds = round(file.duration / av.time_base)
        return seconds, video.width, video.height, bool(file.streams.audio), video.codec_context.name


async def fetch(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as http:
        return await http.get(url, headers=headers)


@pytest.mark.parametrize(
    ("tag", "fields", "expected"),
    [
        ("ok", {}, (15, 1280, 720, True)),
        ("ok", {"model": "veo_3_1-hd-remix"}, (15, 1920, 1080, True)),
        ("ok", {"size": "720x1280"}, (15, 720, 1280, True)),
        ("short", {}, (8, 1280, 720, True)),
        ("silent,short", {}, (8, 1280, 720, False)),
        ("small,short", {"model": "veo_3_1-hd-remix", "size": "1920x1080"}, (8, 1280, 720, True)),
        ("extend_failed", {}, (8, 1280, 720, True)),
    ],
)
async def test_the_file_behind_video_url(
    sim: Simulator, finished: Any, tag: str, fields: dict[str, str], expected: tuple[int, int, int, bool]
) -> None:
    body = await finished(tag, **fields)
    answer = await fetch(body["data"]["video_url"])
    assert answer.headers["content-type"] == "video/mp4"
    assert inspect(answer.content)[:4] == expected
    assert answer.content.index(b"moov") < answer.content.index(b"mdat"), "faststart"
    assert not sim.ledger.violations()


async def test_the_first_segment(finished: Any) -> None:
    answer = await fetch((await finished())["data"]["first_video_url"])
    assert inspect(answer.content) == (8, 1280, 720, True, "h264")


async def test_content_needs_the_key_and_a_finished_task(http: httpx.AsyncClient, finished: Any) -> None:
    path = f"/v1/videos/{(await finished())['task_id']}/content"
    assert inspect((await http.get(path)).content)[0] == 15
    assert (await http.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
    for tag in ("never_finishes", "extend_failed", "task_lost"):
        path = f"/v1/videos/{(await finished(tag))['task_id']}/content"
        assert (await http.get(path)).status_code == 400
    path = f"/v1/videos/{(await finished('task_lost,recovers'))['task_id']}/content"
    assert (await http.get(path)).status_code == 200
    assert (await http.get("/v1/videos/unknown/content")).status_code == 404


async def test_the_address_in_result_url(http: httpx.AsyncClient, finished: Any) -> None:
    assert (await http.get((await finished())["result_url"])).status_code == 404, "stock does not know that id"
    assert (await http.get((await finished("result_url_works"))["result_url"])).status_code == 200
    only = await finished("result_url_only")
    assert "video_url" not in only["data"]
    assert (await http.get(only["result_url"])).status_code == 200
    assert (await http.get(f"/v1/videos/{only['task_id']}/content")).status_code == 404
    content_only = await finished("content_only")
    assert "video_url" not in content_only["data"]
    assert (await http.get(f"/v1/videos/{content_only['task_id']}/content")).status_code == 200


async def test_ranges(http: httpx.AsyncClient, finished: Any) -> None:
    url = (await finished())["data"]["video_url"]
    whole = (await fetch(url)).content
    part = await fetch(url, Range="bytes=100-199")
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert (await fetch(url, Range=f"bytes={len(whole) - 5}-")).content == whole[-5:]
    assert (await fetch(url, Range="bytes=-7")).content == whole[-7:]
    assert (await fetch(url, Range=f"bytes={len(whole)}-")).status_code == 416
    stale = {"Range": "bytes=100-", "If-Range": '"another"'}
    assert (await fetch(url, **stale)).status_code == 200
    url = (await finished("range_ignored"))["data"]["video_url"]
    assert (await fetch(url, Range="bytes=100-")).content == whole
    url = (await finished("range_lying"))["data"]["video_url"]
    lie = await fetch(url, Range="bytes=100-199")
    assert (lie.status_code, lie.content) == (206, whole[: len(whole) // 3])
    headers = {"Range": "bytes=100-199"}
    stock = f"/v1/videos/{(await finished())['task_id']}/content"
    assert (await http.get(stock, headers=headers)).status_code == 200
    fork = f"/v1/videos/{(await finished('range_content'))['task_id']}/content"
    assert (await http.get(fork, headers=headers)).status_code == 206


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("truncated", httpx.RemoteProtocolError),
        ("truncated_chunked", httpx.RemoteProtocolError),
        ("download_reset", httpx.ReadError),
        ("download_stall", httpx.ReadTimeout),
    ],
)
@pytest.mark.parametrize("where", ["cdn", "content"])
async def test_a_download_breaks_once_and_at_one_place(
    http: httpx.AsyncClient, finished: Any, word: str, error: type[Exception], where: str
) -> None:
    body = await finished(f"{word},short,downloads=1,where={where}")
    own = f"{http.base_url}/v1/videos/{body['task_id']}/content"
    url = body["data"]["video_url"] if where == "cdn" else own
    headers = {} if where == "cdn" else dict(http.headers)
    received: list[bytes] = []

    async def download() -> None:
        async with httpx.AsyncClient(timeout=0.5) as other, other.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_bytes():
                received.append(chunk)  # noqa: PERF401 (what came before the break is the point)

    with pytest.raises(error):
        await download()
    assert received
    await download()


@pytest.mark.parametrize("word", ["truncated_framed", "truncated_unframed"])
async def test_a_truncation_that_looks_whole(finished: Any, word: str) -> None:
    whole = (await fetch((await finished("short"))["data"]["video_url"])).content
    answer = await fetch((await finished(f"{word},short"))["data"]["video_url"])
    assert answer.status_code == 200
    assert answer.content == whole[: len(whole) // 2]


async def test_the_remaining_download_faults(http: httpx.AsyncClient, finished: Any) -> None:
    async def status(tag: str) -> httpx.Response:
        return await fetch((await finished(tag))["data"]["video_url"])

    assert (await status("html_file")).text.startswith("<!doctype html>")
    assert (await status("download_404")).status_code == 404
    assert (await status("download_502")).status_code == 502
    assert inspect((await status("slow,drip=5,short")).content)[0] == 8
    for tag, code in (("no_content_route", 404), ("content_502", 502), ("content_redirect", 302)):
        path = f"/v1/videos/{(await finished(tag))['task_id']}/content"
        assert (await http.get(path)).status_code == code


async def test_links_are_signed_expire_and_can_be_renewed(http: httpx.AsyncClient, finished: Any) -> None:
    url = (await finished())["data"]["video_url"]
    assert (await fetch(url.replace("Signature=", "Signature=0"))).status_code == 403
    assert (await fetch((await finished("link_seconds=0"))["data"]["video_url"])).status_code == 403
    assert (await fetch((await finished("links_expired"))["data"]["video_url"])).status_code == 403
    first = await finished("link_403")
    again = (await http.get(f"/v1/videos/{first['task_id']}")).json()
    assert (await fetch(first["data"]["video_url"])).status_code == 403
    assert (await fetch(again["data"]["video_url"])).status_code == 200


async def test_redirects(sim: Simulator, finished: Any) -> None:
    location = (await fetch((await finished("link_redirect"))["data"]["video_url"])).headers["location"]
    assert (await fetch(location)).status_code == 200
    location = (await fetch((await finished("link_private"))["data"]["video_url"])).headers["location"]
    assert location.startswith("http://169.254.169.254/")
    location = (await fetch((await finished("link_loopback"))["data"]["video_url"])).headers["location"]
    assert not sim.ledger.violations()
    await fetch(location)
    [trapped] = sim.ledger.violations()
    assert trapped["origin"] == "trap"


async def test_a_key_sent_to_the_cdn_is_a_violation(sim: Simulator, http: httpx.AsyncClient, finished: Any) -> None:
    await http.get((await finished("short"))["data"]["video_url"])
    [violation] = sim.ledger.violations()
    assert violation["origin"] == "cdn"


def test_every_delivery_word_is_used_in_these_tests() -> None:
    source = Path(__file__).read_text()
    words = [row.name for row in SCENARIOS.values() if row.kind == "delivery"]
    assert [word for word in words if word not in source] == []
