"""What a run shows: the figures, and whatever is not as it must be, by name."""

import hashlib
import re
import textwrap
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from longtake.models import OnExtendFailed
from longtake.temporal.connection import workflow_id
from tests.chaos.histories import RunOfKey, read_all
from tests.chaos.plan import MARK, Plan, Planned
from tests.chaos.run import Run
from tests.chaos.site import API_KEYS, CONSOLE_TOKEN, Site

_SIGNED_LINK = re.compile(r"Signature=|Expires=|Key-Pair-Id=")
_WORKER_DEFECT = re.compile(r"[Nn]on-?determinis|Failed activation|Failed handling activation|Traceback \(most recent")
_COLUMNS = 160
_NOTHING_MADE = frozenset(
    {"no_channel", "build_request_failed", "submit_521", "submit_522", "submit_523", "submit_525", "submit_526"}
)
"""Answers of 500 and more after which a submission may be sent again (field notes). `get_channel_failed` is none."""
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
    """All figures of one run.

    Attributes:
        amounts: Sums behind those facts that are lists, for the table of several runs.
    """

    seed: int
    facts: list[tuple[str, str]]
    amounts: dict[str, int]
    zeros: list[Zero]

    @property
    def good(self) -> bool:
        """Whether every figure that must be 0 is."""
        return not any(zero.found for zero in self.zeros)

    def document(self) -> Json:
        """The same as JSON."""
        return {
            "seed": self.seed,
            "good": self.good,
            "facts": dict(self.facts),
            "zeros": {zero.name: zero.found for zero in self.zeros},
        }

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


async def examine(plan: Plan, site: Site, run: Run, folder: Path) -> Report:
    """Hold the histories, the gateway's truth, the store and the logs against the plan.

    The histories of every generation that is named in what must be 0 are kept in the folder: a replayer reads them.
    """
    runs = await read_all(run.temporal)
    report = Examination(plan, site, run, runs, await site.admin.tasks(), await site.admin.ledger()).report()
    named = "\n".join(line for zero in report.zeros for line in zero.found)
    for one in runs:
        if re.search(rf"{one.key}\b", named):
            (folder / "histories").mkdir(exist_ok=True)
            (folder / "histories" / f"{one.key}-{one.run_id}.json").write_text(one.history)
    return report


class Examination:
    """One run's evidence."""

    def __init__(  # noqa: PLR0917 - six kinds of evidence
        self, plan: Plan, site: Site, play: Run, runs: list[RunOfKey], tasks: list[Json], ledger: list[Json]
    ) -> None:
        self._plan, self._site, self._journal, self._operators = plan, site, play.journal, play.operators
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
            Zero("submissions sent again and nobody asked", self._sent_unasked()),
            Zero("false statements about money", self._false_statements()),
            Zero("generations without an end or a visible wait", self._without_end()),
            Zero("endings that the scenario does not allow", self._wrong_endings()),
            Zero("paid clips not in the store though the gateway still had them", self._lost_clips()),
            Zero("files that do not match their hash", self._wrong_files()),
            Zero("another generation's task taken", self._wrong_tasks()),
            Zero("workflow task failures", self._task_failures()),
            Zero("wrong answers to callers", self._journal.complaints),
            Zero("records lost in a store that was gone", self._site.store.lost()),
            Zero("keys sent to another host than the gateway", self._violations()),
            Zero("keys in histories", self._in_histories((*API_KEYS, CONSOLE_TOKEN))),
            Zero("signed links in histories", self._in_histories(_SIGNED_LINK)),
            Zero("keys in logs", self._in_logs((*API_KEYS, CONSOLE_TOKEN))),
            Zero("signed links in logs", self._in_logs(_SIGNED_LINK)),
            Zero("prompts in logs", self._in_logs((MARK,))),
            Zero("defects in logs", self._in_logs(_WORKER_DEFECT)),
        ]
        return Report(self._plan.seed, self._facts(), self._amounts(), zeros)

    def _amounts(self) -> dict[str, int]:
        did = self._operators.did
        return {
            "workflow resets": sum(count for name, count in did.items() if name.startswith("reset a workflow ")),
            "activities paused": sum(count for name, count in did.items() if name.startswith("paused ")),
            "decisions": sum(count for name, count in self._journal.operator.items() if name.startswith("decide")),
            "submissions in doubt": sum(len(run.doubts) for run in self._runs if not run.resets),
        }

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
            ("clocks ahead", ", ".join(f"{shift:+.0f} s" for shift in self._plan.clock_shifts)),
            ("rolled back to the older build and forward", str(happened["roll back"])),
            ("operator", _counts(journal.operator)),
            ("operators by Temporal's own means", _counts(self._operators.did)),
            ("generations reset", f"{len(journal.reset)}, runs whose history was cut {self._cut_runs()}"),
            ("POSTs seen", str(sum("paid" in entry for entry in self._ledger))),
            ("paid jobs", str(len(self._tasks))),
            ("ends of the last runs", _counts(Counter(self._last(key).end or "runs" for key in self._runs_of))),
            (
                "in doubt, and settled",
                f"{len(doubts)}: {_counts(Counter(doubt.resolved or 'open' for doubt in doubts))}",
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

    def _cut_runs(self) -> int:
        return sum(bool(run.resets) for run in self._runs)

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

    def _sent_unasked(self) -> list[str]:
        """A POST whose answer leaves open whether it was paid may be followed by another only where a person asks.

        By the gateway's own list of requests; what it surely refused may be sent again. It sees more than the paid
        ones: an unasked POST that happens to be free is the same defect.
        """
        sent = defaultdict(list)
        for entry in self._ledger:
            if "paid" in entry and not _surely_refused(entry):
                sent[entry.get("prompt", "")].append(entry)
        found = []
        for one in self._plan.generations:
            for prompt in (one.prompt, one.prompt_extend):
                asked, posts = self._journal.submitted_again[prompt], len(sent[prompt])
                if posts > 1 + asked:
                    what = "" if prompt == one.prompt else " of the extension"
                    when = ", ".join(_clock(entry["time"]) for entry in sent[prompt])
                    found.append(f"{self._words(one)}: {posts} POSTs{what} ({when}), asked for again {asked} times")
        return found

    def _false_statements(self) -> list[str]:
        """What a run's end and the list say of money, against what the gateway had taken for its prompt.

        "No" must stay true until the next run of the key begins: what an attempt that nobody waits for any more sends
        later was denied as well.
        """
        paid_at = defaultdict(list)
        for entry in self._ledger:
            if entry.get("paid"):
                paid_at[entry["prompt"]].append(datetime.fromtimestamp(entry["time"], UTC))
        found = []
        for key, runs in self._runs_of.items():
            one = self._by_key[key]
            for number, run in enumerate(runs):
                later = runs[number + 1].started_at if number + 1 < len(runs) else datetime.max.replace(tzinfo=UTC)
                # A terminated run said nothing more; what the list showed last was true or not when it was written.
                until = run.closed_at or later if run.end == "Terminated" else later
                said = {word for word in (run.paid, run.paid_shown) if word}
                if "no" in said and any(at < until for at in paid_at[one.prompt]):
                    found.append(f"{self._words(one)}: {run.run_id} ({run.end or 'runs'}) says that nothing was paid")
                if "yes" in said and not paid_at[one.prompt]:
                    found.append(f"{self._words(one)}: {run.run_id} ({run.end or 'runs'}) says that it was paid")
        return found

    def _without_end(self) -> list[str]:
        found = [self._words(one) + ": never started" for one in self._plan.generations if one.key not in self._runs_of]
        return found + [
            f"{self._words(self._by_key[run.key])}: runs, nothing tells why: {run.last_event}; {dict(run.activities)}"
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
        if run.end == "Terminated" and one.key in self._journal.reset and not last:
            return True
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
            case "GenerationTimedOut":
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


def _surely_refused(entry: Json) -> bool:
    """Whether this answer to a POST proves that nothing was made (field notes), and the client can have read it."""
    status, fault = entry["status"], entry.get("fault", "")
    if entry["paid"] or not status:
        return False
    return (status < 500 and status != 307) or fault in _NOTHING_MADE


def _clock(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%H:%M:%S")


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda item: -item[1])) or "0"
