"""What a run shows: the figures, and whatever is not as it must be, by name."""

import hashlib
import re
import textwrap
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from longtake.models import OnExtendFailed
from longtake.temporal import workflow_id
from tests.chaos.histories import RunOfKey, read_all
from tests.chaos.plan import MARK, Plan, Planned
from tests.chaos.run import Journal, Run
from tests.chaos.site import API_KEYS, CONSOLE_TOKEN, Site

_SIGNED_LINK = re.compile(r"Signature=|Expires=|Key-Pair-Id=")
_WORKER_DEFECT = re.compile(r"[Nn]on-?determinis|Failed activation|Failed handling activation|Traceback \(most recent")
_COLUMNS = 160
_AFTER_KEYS = timedelta(seconds=30)
"""A refusal may take this long to become an end: its worker may be stopped or killed meanwhile."""

Json = dict[str, Any]


@dataclass
class Zero:
    """A figure that must be 0.

    Attributes:
        found: What it counts, one line each.
    """

    name: str
    found: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All figures of one run."""

    seed: int
    facts: list[tuple[str, str]]
    zeros: list[Zero]

    @property
    def good(self) -> bool:
        """Whether every figure that must be 0 is."""
        return not any(zero.found for zero in self.zeros)

    def text(self) -> str:
        """The table, and what is wrong."""
        rows = [*self.facts, *((f"{zero.name} (0)", str(len(zero.found))) for zero in self.zeros)]
        width = max(len(name) for name, _ in rows)
        lines = [
            textwrap.fill(
                f"  {name:{width}}  {value}", _COLUMNS, subsequent_indent=" " * (width + 4), break_on_hyphens=False
            )
            for name, value in rows
        ]
        for zero in self.zeros:
            if zero.found:
                lines += ["", f"{zero.name}:", *(f"  - {one}" for one in zero.found)]
        return "\n".join(lines)


async def examine(plan: Plan, site: Site, run: Run) -> Report:
    """Hold the histories, the gateway's truth, the store and the logs against the plan."""
    return Examination(
        plan, site, run.journal, await read_all(run.temporal), await site.admin.tasks(), await site.admin.ledger()
    ).report()


class Examination:
    """One run's evidence."""

    def __init__(  # noqa: PLR0917 - six kinds of evidence
        self, plan: Plan, site: Site, journal: Journal, runs: list[RunOfKey], tasks: list[Json], ledger: list[Json]
    ) -> None:
        self._plan, self._site, self._journal = plan, site, journal
        self._by_key = {one.key: one for one in plan.generations}
        self._runs = runs
        self._runs_of: dict[str, list[RunOfKey]] = defaultdict(list)
        for run in runs:
            self._runs_of[run.key].append(run)
        self._tasks, self._ledger = tasks, ledger
        log = site.server.log.read_text(errors="replace").splitlines()
        self._server_errors = "\n".join(line for line in log if 'error="context' in line)
        self._paid = Counter((entry["kind"], entry["prompt"]) for entry in ledger if entry.get("paid"))

    def report(self) -> Report:
        """Everything."""
        zeros = [
            Zero("second paid submissions", self._paid_twice()),
            Zero("generations without an end or a visible wait", self._without_end()),
            Zero("endings that the scenario does not allow", self._wrong_endings()),
            Zero("paid clips not in the store though the gateway still had them", self._lost_clips()),
            Zero("files that do not match their hash", self._wrong_files()),
            Zero("another generation's task taken", self._wrong_tasks()),
            Zero("workflow task failures", self._task_failures()),
            Zero("wrong answers to callers", self._journal.complaints),
            Zero("records written into a store that was gone", self._site.store.recreated),
            Zero("keys sent to another host than the gateway", self._violations()),
            Zero("keys in histories", self._in_histories((*API_KEYS, CONSOLE_TOKEN))),
            Zero("signed links in histories", self._in_histories(_SIGNED_LINK)),
            Zero("keys in logs", self._in_logs((*API_KEYS, CONSOLE_TOKEN))),
            Zero("signed links in logs", self._in_logs(_SIGNED_LINK)),
            Zero("prompts in logs", self._in_logs((MARK,))),
            Zero("defects in logs", self._in_logs(_WORKER_DEFECT)),
        ]
        return Report(self._plan.seed, self._facts(), zeros)

    def _facts(self) -> list[tuple[str, str]]:
        journal, happened = self._journal, self._journal.happened
        proxies = self._site.gateway_proxy.counts, self._site.cdn_proxy.counts
        scenarios = Counter(entry["fault"] for entry in self._ledger if entry.get("fault"))
        doubts = [doubt for run in self._runs for doubt in run.doubts]
        by_itself = Counter[int]()
        for worker in self._site.workers:
            by_itself += worker.ended_by_itself
        return [
            ("seed", str(self._plan.seed)),
            ("seconds", f"{journal.seconds:.0f}"),
            ("generations", str(len(self._by_key))),
            ("workflow runs", str(len(self._runs))),
            ("workers: SIGKILL", str(happened["kill"])),
            ("workers: SIGSTOP and SIGCONT", str(happened["stop"])),
            ("workers: SIGTERM", str(happened["drain"])),
            ("workers that ended by themselves, by exit code", _counts(by_itself)),
            ("server restarts", f"{happened['server killed']} by SIGKILL, {happened['server stopped']} by SIGTERM"),
            ("store taken away", str(happened["store"])),
            ("keys expired", f"both {happened['keys']}, the first {happened['key']}"),
            ("gateway out of order", f"503 {happened['outage']}, refusing {happened['refuse']}"),
            ("connections to the gateway", _counts(proxies[0])),
            ("connections to the CDN", _counts(proxies[1])),
            ("faults played by the gateway", f"{scenarios.total()}: {_counts(scenarios)}"),
            ("callers", _counts(journal.callers)),
            ("operator", _counts(journal.operator)),
            ("POSTs seen", str(sum("paid" in entry for entry in self._ledger))),
            ("paid jobs", str(len(self._tasks))),
            ("ends of the last runs", _counts(Counter(self._last(key).end or "runs" for key in self._runs_of))),
            (
                "in doubt, and settled",
                f"{len(doubts)}: {_counts(Counter(doubt.settled or 'open' for doubt in doubts))}",
            ),
            ("found in the ledger by a later attempt", str(sum(run.found_by_owner for run in self._runs))),
            ("ends of earlier runs", _counts(Counter(run.end for run in self._runs if run is not self._last(run.key)))),
            ("looks", str(sum(run.activities["query_generation"] for run in self._runs))),
            ("history events harmless to others", _counts(self._harmless())),
            ("still waiting, visibly", _counts(Counter(filter(None, map(self._visible_wait, self._runs))))),
        ]

    def _harmless(self) -> Counter[str]:
        found = Counter[str]()
        for run in self._runs:
            found += run.harmless_task_failures
        return found

    # What must be 0

    def _paid_twice(self) -> list[str]:
        """By unique prompt. A person submits again only where nothing was made, so one is the most; a retried
        extension is a payment of its own, which only a caller's wish or a person's decision allows."""
        found = []
        for one in self._plan.generations:
            firsts, extensions = self._paid["submit", one.prompt], self._paid["remix", one.prompt_extend]
            may_retry = one.case.on_extend_failed is OnExtendFailed.RETRY or one.key in self._journal.retried
            if firsts > 1 or extensions > int(may_retry):
                found.append(f"{self._words(one)}: {firsts} paid submissions, {extensions} paid extensions")
        planned = {("submit", one.prompt) for one in self._plan.generations}
        planned |= {("remix", one.prompt_extend) for one in self._plan.generations}
        return found + [f"nobody asked for {pair}" for pair in self._paid if pair not in planned]

    def _without_end(self) -> list[str]:
        found = [self._words(one) + ": never started" for one in self._plan.generations if one.key not in self._runs_of]
        return found + [
            f"{self._words(self._by_key[run.key])}: runs, and nothing tells why; {dict(run.activities)}"
            for run in self._runs
            if not run.end and not self._visible_wait(run)
        ]

    def _visible_wait(self, run: RunOfKey) -> str:
        if run.end:
            return ""
        if run.attention:
            return run.attention
        if run.next_try:
            return f"the next attempt of {run.next_try}"
        pid = run.held_by.partition("@")[0]
        if pid.isdigit() and any(int(pid) in worker.dead for worker in self._site.workers):
            return "an activity of a killed worker, until its time-out"
        # The dev server, overloaded, notes a start and fails to hand the task out: its log names the workflow then.
        if run.held_by and f"wf-id={workflow_id(run.key)} " in self._server_errors:
            return "an activity that the server lost, until its time-out"
        return ""

    def _wrong_endings(self) -> list[str]:
        found = []
        for run in self._runs:
            one = self._by_key[run.key]
            last = run is self._last(run.key)
            if run.end and not self._allowed(one, run, last=last):
                allowed = " or ".join(sorted(one.case.ends))
                which = "the last run" if last else "an earlier run"
                found.append(f"{self._words(one)}: {which} ended as {run.end} ({run.message[:300]}), not as {allowed}")
        return found

    def _allowed(self, one: Planned, run: RunOfKey, *, last: bool) -> bool:  # noqa: PLR0911 (a table)
        if run.end in one.case.ends:
            return True
        interfered = one.key in self._journal.interfered
        match run.end:
            case "Abandoned":
                return one.key in self._journal.abandoned
            case "Cancelled" | "Terminated":
                return interfered and not (last and one.interference.endswith("again"))
            case "SubmissionOutcomeUnknown" | "NotSubmitted":
                # A submission that is cancelled half-way says what is known of it.
                return interfered and one.interference.startswith("cancel")
            case "SubmissionRefused":
                # Started again by its caller, once the key is well; but by nobody who meant to cancel it.
                return (not last or one.interference == "cancel") and run.paid == "no" and self._keys_were_out(run)
            case "GenerationStalled":
                # The limit is a day in real life and two minutes here: started again by its caller.
                return not last and run.paid == "yes"
            case "fallback" if one.case.on_extend_failed is OnExtendFailed.RETRY:
                refused = any("SubmissionRefused" in warning for warning in run.result["warnings"])
                return (refused and self._keys_were_out(run)) or one.key in self._journal.abandoned
        return False

    def _keys_were_out(self, run: RunOfKey) -> bool:
        closed = run.closed_at or datetime.now(UTC)
        return any(run.started_at <= until and closed >= since for since, until in self._windows())

    def _windows(self) -> list[tuple[datetime, datetime]]:
        return [(since, until + _AFTER_KEYS) for since, until in self._journal.keys_out]

    def _lost_clips(self) -> list[str]:
        found = []
        by_prompt = defaultdict(list)
        for task in self._tasks:
            by_prompt[task["prompt"]].append(task)
        for one in self._plan.generations:
            made = [task["state"] for task in by_prompt[one.prompt] if task["state"] in {"completed", "extend_failed"}]
            unwanted = one.interference == "cancel" or one.key in self._journal.abandoned
            if not made or not one.case.delivers or unwanted or one.key not in self._runs_of:
                continue
            last = self._last(one.key)
            if not last.end and self._visible_wait(last):
                continue
            files = [str(video["uri"]) for run in self._runs_of[one.key] for video in run.videos]
            if not any(self._site.store.read(uri) for uri in files):
                found.append(f"{self._words(one)}: {made[0]} at the gateway, ended as {last.end}, no clip in the store")
        return found

    def _wrong_files(self) -> list[str]:
        found = [
            f"{self._words(self._by_key[run.key])}: {problem}"
            for run in self._runs
            for video in run.videos
            if (problem := self._mismatch(str(video["uri"]), video))
        ]
        clips = self._site.store.clips()
        return [*found, *(problem for uri, video in clips if (problem := self._mismatch(uri, video)))]

    def _mismatch(self, uri: str, video: Json) -> str:
        content = self._site.store.read(uri)
        if content is None:
            return f"{uri} is not in the store"
        digest = hashlib.sha256(content).hexdigest()
        if (digest, len(content)) == (video["sha256"], video["bytes"]):
            return ""
        return f"{uri} has {len(content)} bytes and {digest[:12]}, not {video['bytes']} and {video['sha256'][:12]}"

    def _wrong_tasks(self) -> list[str]:
        prompts = {task["task_id"]: task["prompt"] for task in self._tasks}
        return [
            f"{self._words(self._by_key[run.key])}: it took {task_id}"
            for run in self._runs
            if (task_id := run.result.get("task_id")) and prompts.get(task_id) != self._by_key[run.key].prompt
        ]

    def _task_failures(self) -> list[str]:
        return [
            f"{self._words(self._by_key[run.key])}: {failure}" for run in self._runs for failure in run.task_failures
        ]

    def _violations(self) -> list[str]:
        return [f"{entry['violation']}: {entry['path']}" for entry in self._ledger if entry.get("violation")]

    def _in_histories(self, what: tuple[str, ...] | re.Pattern[str]) -> list[str]:
        pattern = _pattern(what)
        return [
            f"{run.key} {run.run_id}: …{_around(run.text, match)}…"
            for run in self._runs
            if (match := pattern.search(run.text))
        ]

    def _in_logs(self, what: tuple[str, ...] | re.Pattern[str]) -> list[str]:
        pattern = _pattern(what)
        found = []
        for log in (*(worker.process.log for worker in self._site.workers), self._site.server.log):
            for number, line in enumerate(log.read_text(errors="replace").splitlines(), start=1):
                if match := pattern.search(line):
                    found.append(f"{log.name}:{number}: …{_around(line, match)}…")
        return found

    # Words

    def _last(self, key: str) -> RunOfKey:
        return self._runs_of[key][-1]

    def _words(self, one: Planned) -> str:
        interference = f", {one.interference}" if one.interference else ""
        return f"{one.key} [{one.case.name}] {one.model}{interference}"


def _pattern(what: tuple[str, ...] | re.Pattern[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, what))) if isinstance(what, tuple) else what


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - 120) : match.end() + 200].replace("\n", " ")


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda item: -item[1])) or "0"
