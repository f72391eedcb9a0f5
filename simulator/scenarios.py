"""The scenarios of the simulator, and the small language that chooses them.

A tag in the prompt chooses a scenario, `[sim:extend_failed]`, `[sim:ok,seconds=3,shape=S2]`, or the header
`X-Simulator-Scenario` with the text between the brackets. Words can be combined. `SCENARIOS` is the only list of them;
a test compares it with the table in `simulator/README.md`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["outcome", "submit answer", "submit fault", "query", "value", "delivery", "account"]
Shape = Literal["new_api", "relay", "html", "empty", "wire", "delay"]

HEADER: Final = "x-simulator-scenario"
_TAG: Final = re.compile(r"\[sim:([^\]]*)\]")


class UnknownScenarioError(ValueError):
    """The tag or header holds a word, a parameter or a value that the simulator does not know."""


@dataclass(frozen=True)
class SubmitFault:
    """How a submission goes wrong.

    Attributes:
        status: HTTP status of the answer; 0 where no whole answer is sent.
        shape: Which error body is sent, or `wire` for a fault of the connection itself.
        code: The gateway's error code, where the shape carries one.
        message: The gateway's message.
        paid: Whether a paid job is made all the same (the parameter `unpaid` turns it off).
    """

    status: int
    shape: Shape
    code: str = ""
    message: str = ""
    paid: bool = False


@dataclass(frozen=True)
class Scenario:
    """One word of the language."""

    name: str
    kind: Kind
    summary: str
    fault: SubmitFault | None = None


def _refusal(  # noqa: PLR0913, PLR0917 (a row of the table below)
    name: str, summary: str, status: int, shape: Shape, code: str = "", message: str = ""
) -> Scenario:
    return Scenario(name, "submit fault", summary, SubmitFault(status, shape, code, message, paid=False))


def _unknown(  # noqa: PLR0913, PLR0917 (a row of the table below)
    name: str, summary: str, status: int, shape: Shape, code: str = "", message: str = ""
) -> Scenario:
    return Scenario(name, "submit fault", summary, SubmitFault(status, shape, code, message, paid=True))


_OUTCOMES = (
    ("ok", "The 15 s video is made."),
    ("extend_failed", "First segment made, extension failed (E-2003): the 8 s clip at `data.video_url`."),
    ("generate_failed", "First segment failed (E-1005): only `remix_id`."),
    ("task_lost", 'FAILURE "upstream returned error", 100%, `data` replaced by an error body.'),
    ("task_lost_unrecognized", 'FAILURE "upstream returned unrecognized message", `data` replaced.'),
    ("task_lost_timeout", "FAILURE 任务超时（1440分钟）, the gateway's own 24 h limit; `data` as it was."),
    ("task_lost_channel", 'FAILURE "Failed to get channel info…"; `data` as it was.'),
    ("task_lost_empty", "FAILURE with an empty reason and `data` null."),
    ("cancelled", "FAILURE with `data.status` cancelled and no `error`: no verdict either."),
    ("never_finishes", "Stays at 61% for ever."),
    ("late_success", "The 15 s video, after four times the time; 99% meanwhile."),
    ("task_missing", "Paid, but every query answers `task_not_exist`, for ever (`status=400` or 404)."),
)

_SUBMIT_ANSWERS = (
    ("submit_flat", "The stock answer: a flat object with both ids."),
    ("submit_envelope", "The task envelope: numeric `id`, string `task_id`."),
    ("submit_code_string", '`{"code": "success", "data": "<id>"}`.'),
    ("submit_code_object", '`{"code": "success", "data": {"task_id"}}`.'),
    ("submit_code_list", '`{"code": 200, "data": [{"status": "submitted", "task_id"}]}`.'),
    ("submit_id_only", '`{"id": "<id>"}`.'),
    ("submit_no_id", "200, a JSON object, paid, no id in it."),
    ("submit_html", "200, paid, an HTML page."),
    ("submit_not_json", "200, paid, not JSON."),
    ("submit_empty", "200, paid, an empty body."),
)

_SUBMIT_FAULTS = (
    _refusal("refuse_400", "400, task relay's shape.", 400, "relay", "invalid_request", "invalid size"),
    _refusal("refuse_400_new_api", "400, routing's shape.", 400, "new_api", "invalid_request", "bad prompt"),
    _refusal("refuse_401", "401 无效的令牌.", 401, "new_api", "", "无效的令牌"),
    _refusal("refuse_402", "402, not used by stock.", 402, "new_api", "insufficient_user_quota", "用户额度不足"),
    _refusal(
        "refuse_403", "403, the key may not use the model.", 403, "new_api", "access_denied", "该令牌无权访问模型"
    ),
    _refusal(
        "insufficient_quota",
        "403 `insufficient_user_quota`.",
        403,
        "new_api",
        "insufficient_user_quota",
        "用户额度不足",
    ),
    _refusal(
        "key_without_quota",
        "403 `pre_consume_token_quota_failed`.",
        403,
        "relay",
        "pre_consume_token_quota_failed",
        "token quota is not enough, token remain quota: 0, need quota: 425000",
    ),
    _refusal("refuse_413", "413 from the proxy before the gateway, HTML.", 413, "html"),
    _refusal("refuse_415", "415.", 415, "relay", "unsupported_media_type", "unsupported media type"),
    _refusal("refuse_422", "422.", 422, "relay", "unprocessable", "unprocessable image"),
    _refusal(
        "rate_limited",
        "429 (`retry_after=N`, `retry_after=date` or none).",
        429,
        "new_api",
        "rate_limit",
        "当前请求过多",
    ),
    _refusal(
        "no_channel", "503 `model_not_found`.", 503, "new_api", "model_not_found", "No available channel for model"
    ),
    _refusal("get_channel_failed", "500 `get_channel_failed`.", 500, "new_api", "get_channel_failed", "no channel"),
    _refusal(
        "build_request_failed", "500 `build_request_failed`.", 500, "relay", "build_request_failed", "build failed"
    ),
    _refusal("redirect_307", "307 to the same path: following it would submit again.", 307, "empty"),
    _refusal("submit_521", "Cloudflare 521, HTML: the origin refused.", 521, "html"),
    _refusal("submit_522", "Cloudflare 522, HTML: connect timed out.", 522, "html"),
    _refusal("submit_523", "Cloudflare 523, HTML: origin unreachable.", 523, "html"),
    _refusal("submit_525", "Cloudflare 525, HTML: TLS handshake failed.", 525, "html"),
    _refusal("submit_526", "Cloudflare 526, HTML: invalid certificate.", 526, "html"),
    _unknown("do_request_failed", "500 `do_request_failed`.", 500, "relay", "do_request_failed", "EOF"),
    _unknown("read_response_body_failed", "500 of that code.", 500, "relay", "read_response_body_failed", "EOF"),
    _unknown(
        "unmarshal_response_body_failed", "500 of that code.", 500, "relay", "unmarshal_response_body_failed", "<"
    ),
    _unknown("invalid_response", "500 `invalid_response`.", 500, "relay", "invalid_response", "task_id is empty"),
    _unknown("new_api_panic", "500 `new_api_panic`.", 500, "new_api", "new_api_panic", "Panic detected"),
    _unknown(
        "fail_to_fetch_task",
        "500 whose message is the upstream's JSON as a string.",
        500,
        "relay",
        "fail_to_fetch_task",
        '{"error":{"message":"upstream busy","code":"busy"}}',
    ),
    _unknown("submit_500", "500 without a known code.", 500, "relay", "internal", "internal error"),
    _unknown("submit_502", "502, HTML.", 502, "html"),
    _unknown("submit_503", "503 without `model_not_found`, HTML.", 503, "html"),
    _unknown("submit_504", "504, HTML.", 504, "html"),
    _unknown("submit_520", "Cloudflare 520, HTML.", 520, "html"),
    _unknown("submit_524", "Cloudflare 524, HTML.", 524, "html"),
    _unknown("submit_reset", "RST before any byte of the answer.", 0, "wire"),
    _unknown("submit_close", "The connection is closed before any byte of the answer.", 0, "wire"),
    _unknown("submit_hang", "The answer never comes.", 0, "wire"),
    _unknown("submit_half", "Half an answer, then the connection is closed.", 0, "wire"),
    _unknown("submit_delay", "The good answer, `delay=N` seconds late (30).", 200, "delay"),
)

_QUERY = (
    ("task_not_exist", "400 `task_not_exist` (`status=404`) for `polls=N` polls."),
    ("query_401", "401 无效的令牌 for N polls."),
    ("query_403", "403 for N polls."),
    ("query_429", "429 for N polls (`retry_after=N`, `date` or none)."),
    ("query_500", "500, relay shape, for N polls."),
    ("query_502", "502, HTML, for N polls."),
    ("query_503", "503, HTML, for N polls."),
    ("query_504", "504, HTML, for N polls."),
    ("query_problem", "Cloudflare's problem JSON with status 524 and a numeric `status`, for N polls."),
    ("query_html", "200 with an HTML page, for N polls."),
    ("query_not_json", "200, not JSON, for N polls."),
    ("query_empty", "200, an empty body, for N polls."),
    ("query_huge", "200, good JSON with 32 MB of padding, for N polls."),
    ("query_reset", "RST before the answer, for N polls."),
    ("query_close", "Closed before the answer, for N polls."),
    ("query_half", "Half an answer, for N polls."),
    ("query_hang", "The answer never comes, for N polls."),
    ("query_delay", "The good answer, `delay=N` seconds late, for N polls."),
)

_VALUES = (
    ("progress_bare", 'Progress as `"61"`.'),
    ("progress_int", "Progress as `61`."),
    ("progress_float", "Progress as `61.0`."),
    ("progress_empty", 'Progress as `""`.'),
    ("progress_null", "Progress as `null`."),
    ("progress_backwards", "Progress goes up and down (placeholders 30, 10, 20 every other poll)."),
    ("failure_progress_100", "A FAILURE is written with 100%, as stock does."),
    ("milliseconds", "All times in milliseconds."),
    ("missing_fields", "Only `task_id`, `status` and a short `data` remain."),
    ("extra_fields", "Unknown fields, at both levels."),
    ("null_fields", "Everything but ids, status and links is `null`."),
    ("unknown_status", "While running, `REVIEWING` and `data.status` rendering."),
    ("status_unknown", "While running, `UNKNOWN` and `data.status` unknown."),
    ("status_empty", 'While running, `""` in both places.'),
    ("not_start", "While running, `NOT_START` and `data.status` pending."),
    ("inner_lags", "`data.status` says processing although the envelope has ended."),
    ("inner_synonyms", "`data.status` is succeeded or error; in_progress while running."),
    ("failure_in_result_url", "On a FAILURE `result_url` holds the failure's text."),
    ("no_first_url", "No `first_video_url` on success."),
)

_DELIVERY = (
    ("short", "The 15 s video is an 8 s file."),
    ("small", "A 720p file for an `-hd` model."),
    ("silent", "A file with no sound."),
    ("html_file", "An HTML page with status 200 instead of the file."),
    ("truncated", "Right Content-Length, half the bytes, connection closed."),
    ("truncated_chunked", "Chunked, half the bytes, no last chunk."),
    ("truncated_unframed", "No Content-Length, half the bytes, closed: looks whole."),
    ("truncated_framed", "Content-Length of half the file, half the file: looks whole."),
    ("download_reset", "Half the bytes, then RST."),
    ("download_stall", "Half the bytes, then nothing."),
    ("slow", "A slow drip (`drip=N` seconds in all, 10)."),
    ("download_404", "404."),
    ("download_502", "502, HTML."),
    ("range_ignored", "The CDN answers a Range with 200 and everything."),
    ("range_lying", "206 whose Content-Range and bytes are not what was asked for."),
    ("range_content", "`/content` honours Range (some forks do; stock ignores it)."),
    ("no_content_route", "`/content` answers 404."),
    ("content_502", "`/content` answers 502."),
    ("content_redirect", "`/content` redirects to the CDN: the key must not go along."),
    ("content_only", "No `video_url`; `/content` by the gateway's id works."),
    ("result_url_only", "No `video_url`; only the address in `result_url` (the middleware's id) works."),
    ("result_url_works", "The address in `result_url` works too (stock: `task_not_exist`)."),
    ("links_expired", "Every link is refused with 403 as expired."),
    ("link_403", "The links of the first `links=N` successful polls (1) are 403; a fresh query's link works."),
    ("link_redirect", "The link redirects to a good link."),
    ("link_private", "The link redirects to http://169.254.169.254/."),
    ("link_loopback", "The link redirects to another loopback port, a trap."),
)

_ACCOUNT = (
    ("remix", "`POST /v1/videos/{remix_id}/remix` works for this task (stock: `task_origin_not_exist`)."),
    ("unpaid", "A submit fault that is otherwise paid makes no job: the other world of the same symptom."),
    (
        "charged",
        "`newapi-2026-07`: a POST that ends in an error of the gateway's own is charged, which is else given back.",
    ),
    ("no_image_files", "Images as file parts are refused: 400 `invalid_media_input`."),
    ("other_key", "Another key of the account paid for it: this key's log does not show it."),
    ("recovers", "After a task_lost: the job goes on, `/v1/video/generations/{id}` and `/content` show it."),
    ("heals", "After a task_lost: the job goes on, and the first path shows it once it is done."),
)


def _rows(kind: Kind, rows: tuple[tuple[str, str], ...]) -> tuple[Scenario, ...]:
    return tuple(Scenario(name, kind, summary) for name, summary in rows)


SCENARIOS: Final[dict[str, Scenario]] = {
    row.name: row
    for row in (
        *_rows("outcome", _OUTCOMES),
        *_rows("submit answer", _SUBMIT_ANSWERS),
        *_SUBMIT_FAULTS,
        *_rows("query", _QUERY),
        *_rows("value", _VALUES),
        *_rows("delivery", _DELIVERY),
        *_rows("account", _ACCOUNT),
    )
}
"""Every word, by name."""

SHAPES: Final = ("S1", "S2", "S3", "S4", "S5", "S6", "S7")


def _number(text: str) -> str:
    if float(text) < 0:
        raise ValueError(text)
    return text


def _count(text: str) -> str:
    if text != "always":
        _number(str(int(text)))
    return text


def _one_of(*allowed: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return check


def _retry_after(text: str) -> str:
    return text if text == "date" else _number(text)


def _anything(text: str) -> str:
    return text


PARAMETERS: Final[dict[str, tuple[Callable[[str], str], str]]] = {
    "seconds": (_number, "simulated seconds from submission to the video (120); `--speed` divides them"),
    "gateway_poll": (
        _number,
        "simulated seconds between the gateway's own polls upstream (15, at most 1/8 of `seconds`)",
    ),
    "shape": (_one_of(*SHAPES), "the answer's shape on `/v1/videos/{id}` (S3); S5 and S6 for `polls` polls, then S3"),
    "times": (_count, "a submit fault happens for the first N attempts with this prompt (always)"),
    "polls": (_count, "a query scenario happens for the first N polls (2; `always`)"),
    "after": (_count, "... but only after this many good polls (0)"),
    "downloads": (_count, "a download fault happens for the first N downloads (always)"),
    "where": (_one_of("cdn", "content", "both"), "where a download fault happens (both)"),
    "links": (_count, "how many successful polls hand out refused links, for `link_403` (1)"),
    "link_seconds": (_number, "simulated lifetime of a link (86400)"),
    "delay": (_number, "simulated seconds of `submit_delay` and `query_delay` (30)"),
    "drip": (_number, "simulated seconds of a `slow` download (10)"),
    "retry_after": (_retry_after, "real seconds, or `date`, sent as Retry-After with a 429"),
    "status": (_one_of("400", "404"), "the status of `task_not_exist` and `task_missing` (400)"),
    "label": (_anything, "ignored: distinguishes the prompts of tests"),
}
"""Every `name=value`, with its check and meaning."""

_ONE_ONLY: Final[tuple[Kind, ...]] = ("outcome", "submit answer", "submit fault", "query")


@dataclass(frozen=True)
class Script:
    """A parsed scenario: the words, by kind, and the parameters."""

    text: str = ""
    words: frozenset[str] = frozenset()
    params: dict[str, str] = field(default_factory=dict)

    def __contains__(self, word: str) -> bool:
        """Whether the word was given. A word outside the catalogue is a mistake in the simulator."""
        return SCENARIOS[word].name in self.words

    def one(self, kind: Kind, default: str = "") -> str:
        """The word of a kind of which at most one may be given."""
        return next((word for word in self.words if SCENARIOS[word].kind == kind), default)

    def number(self, name: str, default: float) -> float:
        """A parameter as a number."""
        return float(self.params.get(name, default))

    def applies(self, name: str, count: int, default: float) -> bool:
        """Whether the `count`-th event (from 1) still falls under `times`, `polls`, `downloads` or `links`."""
        value = self.params.get(name)
        return count <= (float("inf") if value == "always" else float(value) if value else default)


def parse(text: str) -> Script:
    """Parse what stands between the brackets.

    Raises:
        UnknownScenarioError: A word, parameter or value is not in the catalogue, or two words exclude one another.
    """
    words: set[str] = set()
    params: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals and name in SHAPES:
            name, equals, value = "shape", "=", name
        if not equals:
            if name not in SCENARIOS:
                raise UnknownScenarioError(f"no scenario {name!r}: see simulator/README.md")
            words.add(name)
            continue
        if name not in PARAMETERS:
            raise UnknownScenarioError(f"no parameter {name!r}: see simulator/README.md")
        try:
            params[name] = PARAMETERS[name][0](value)
        except ValueError:
            raise UnknownScenarioError(f"{name}={value} makes no sense: see simulator/README.md") from None
    for kind in _ONE_ONLY:
        others_in_doubt = sorted(word for word in words if SCENARIOS[word].kind == kind)
        if len(others_in_doubt) > 1:
            raise UnknownScenarioError(f"only one {kind} at a time, not {', '.join(others_in_doubt)}")
    return Script(text, frozenset(words), params)


def choose(prompt: str, header: str | None, default: str = "") -> Script:
    """The script for a submission: the header wins over the prompt's tag, the tag over the default."""
    if header is not None:
        return parse(header)
    tag = _TAG.search(prompt)
    return parse(tag.group(1) if tag else default)


def models_table() -> str:
    """The scenarios as the README's Markdown table."""
    lines = ["| scenario | kind | paid? | what happens |", "|---|---|---|---|"]
    for row in SCENARIOS.values():
        paid = "" if row.fault is None else ("paid" if row.fault.paid else "no")
        lines.append(f"| `{row.name}` | {row.kind} | {paid} | {row.summary} |")
    return "\n".join(lines)


def parameter_table() -> str:
    """The parameters as the README's Markdown table."""
    lines = ["| parameter | meaning |", "|---|---|"]
    lines += [f"| `{name}=` | {meaning} |" for name, (_, meaning) in PARAMETERS.items()]
    return "\n".join(lines)
