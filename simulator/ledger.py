"""The ledger: one JSON line for each request, on disk before the response is sent."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Ledger:
    """An append-only JSONL file and its entries in memory.

    A line reaches the kernel before the request is answered, so it survives a SIGKILL of the simulator
    (not a power cut).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = _load(path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, entry: Entry) -> Entry:
        """Write one entry; `n` and `time` (Unix seconds) are added."""
        entry = {"n": len(self.entries) + 1, "time": time.time(), **entry}
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()
        self.entries.append(entry)
        return entry

    def submissions(self, *, paid: bool | None = None) -> list[Entry]:
        """The submissions, remixes included: all, or only those that were (not) paid.

        A POST that was cancelled because its client left (an entry `cancelled` says so) was given back: not paid.
        """
        found = [entry for entry in self.entries if "paid" in entry]
        if paid is None:
            return found
        given_back = {entry["task_id"] for entry in self.entries if entry.get("kind") == "cancelled"}
        return [entry for entry in found if (entry["paid"] and entry.get("task_id") not in given_back) is paid]

    def violations(self) -> list[Entry]:
        """Requests that break a rule, such as a key sent to the CDN."""
        return [entry for entry in self.entries if entry.get("violation")]

    def paid(self) -> dict[str, Any]:
        """Paid submissions: in total, by model, by the prompt's scenario and by prompt; prompts paid twice."""
        paid = self.submissions(paid=True)
        by_prompt = Counter(entry["prompt"] for entry in paid)
        return {
            "total": len(paid),
            "by_model": dict(Counter(entry["model"] for entry in paid)),
            "by_tag": dict(Counter(entry["scenario"] for entry in paid)),
            "by_prompt": dict(by_prompt),
            "paid_twice": sorted(prompt for prompt, count in by_prompt.items() if count > 1),
        }

    def reset(self) -> None:
        """Forget everything, on disk too."""
        self.entries.clear()
        self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _load(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):  # a kill in the middle of a line: that request was never answered
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
