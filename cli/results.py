"""The end of a generation: print the result, copy the video, choose the exit code."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.output import CommandProblem, Exit, complain, print_json, say, write
from longtake.models import GenerateVideoResult, StoredVideo
from longtake.storage import Store, StoreProblem


@dataclass(frozen=True)
class ResultOptions:
    """What to do with a result.

    Attributes:
        output: Copy the video to this file or folder.
        strict: Exit with 3 if only the 8 s clip was delivered.
        as_json: Print one JSON document.
    """

    output: Path | None = None
    strict: bool = False
    as_json: bool = False

    def check(self) -> None:
        """Find out before anything is paid that the video cannot be copied.

        Raises:
            CommandProblem: The folder does not exist or is not writable.
        """
        if self.output is None:
            return
        folder = self.output if self.output.is_dir() else self.output.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            message = f"--output {self.output}: the folder {folder} does not exist or is not writable"
            raise CommandProblem(Exit.USAGE, "InvalidRequest", message)


async def report(result: GenerateVideoResult, store: Store, ids: dict[str, Any], options: ResultOptions) -> Exit:
    """Copy the video if wanted, and print the result.

    Returns:
        0; 3 with `strict` where only the 8 s clip was delivered; 2 where the video could not be copied.
    """
    copied, failed = None, None
    try:
        copied = await copy_video(store, result.video, options.output, str(ids["key"])) if options.output else None
    except CommandProblem as problem:  # the generation is delivered all the same, and its result is printed
        failed = problem
    if options.as_json:
        copy = {"output": copied and str(copied), "output_error": failed and failed.message} if options.output else {}
        print_json({**result.model_dump(mode="json"), **ids, **copy})
    else:
        _print(result, copied)
    if failed:
        complain(failed, as_json=False)
        return failed.code
    return Exit.FALLBACK if options.strict and result.outcome == "fallback" else Exit.DELIVERED


def _print(result: GenerateVideoResult, copied: Path | None) -> None:
    video = result.video
    sound = "with sound" if video.has_audio else "silent"
    say(
        f"{result.outcome}: {video.duration_seconds:.1f} s, {video.width}x{video.height}, {sound}, "
        f"{video.bytes:,} bytes, {result.polls} poll{'s' if result.polls != 1 else ''}, task {result.task_id}"
    )
    if result.outcome == "fallback":
        say(f"only the first 8 s: {result.extend_error_message or result.extend_error_code}")
    for warning in result.warnings:
        say(f"warning: {warning}")
    write(copied or video.uri)


async def copy_video(store: Store, video: StoredVideo, output: Path, key: str) -> Path:
    """Copy a stored video to a file or folder; an existing file is replaced only by a complete one.

    Raises:
        CommandProblem: It cannot be copied; it stays in the store.
    """
    target = output / f"{key}.mp4" if output.is_dir() else output
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            async for chunk in store.stream(store.path_of(video.uri)):
                file.write(chunk)
        shutil.move(fresh, target)
    except (OSError, StoreProblem) as error:
        fresh.unlink(missing_ok=True)
        message = f"the video is in the store ({video.uri}), but cannot be copied to {target}: {error}"
        raise CommandProblem(Exit.USAGE, "OutputFailed", message) from None
    return target
