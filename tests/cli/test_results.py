"""A video that is delivered and cannot be copied to `--output`: the result is told all the same."""

import json
from pathlib import Path

import pytest

from cli.output import Exit
from cli.results import ResultOptions, report
from longtake.models import GenerateVideoResult, StoredVideo
from longtake.storage import Store


async def delivered(store: Store) -> GenerateVideoResult:
    await store.put("videos/order-1/full.mp4", b"a video")
    video = StoredVideo(
        uri=store.uri_of("videos/order-1/full.mp4"),
        bytes=7,
        sha256="0",
        duration_seconds=15.0,
        width=1280,
        height=720,
        has_audio=True,
    )
    return GenerateVideoResult(model="veo_3_1-remix", outcome="full", video=video, task_id="task_1", polls=3)


@pytest.mark.parametrize("exists", [True, False])
async def test_a_copy_that_fails_does_not_drop_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    store = Store.open(str(tmp_path / "store"))
    folder = tmp_path / "copies"
    if exists:
        folder.mkdir()
    options = ResultOptions(output=folder / "a.mp4", as_json=True)
    code = await report(await delivered(store), store, {"key": "order-1"}, options)
    document = json.loads(capsys.readouterr().out)
    assert code == (Exit.DELIVERED if exists else Exit.USAGE)
    assert (document["outcome"], document["key"]) == ("full", "order-1")
    assert bool(document["output"]) is exists
    assert bool(document["output_error"]) is not exists
