"""The table: what a generation of each scenario may end as, whatever the weather was.

The weather (kills, cuts, outages) may delay an end and may put a submission in doubt, but it never excuses another end.
"""

from dataclasses import dataclass
from enum import Enum

from longtake.models import OnExtendFailed


class Pace(Enum):
    """How long a scenario takes to end, in a run with short settings."""

    QUICK = "quick"
    """Seconds."""
    DOUBT = "doubt"
    """Over half a minute: the ledger gives up the owner of a submission after the submit time-out and 30 s."""
    SLOW = "slow"
    """A minute and more: a limit has to pass."""


@dataclass(frozen=True)
class Case:
    """One scenario of the simulator, and the caller's wishes with it.

    Attributes:
        scenario: What stands in the prompt's tag.
        ends: The outcome or the failure types that it may end as.
        extension: The scenario of the extension's retry, in the tag of `prompt_extend`.
        high: Whether it needs an `-hd` model.
    """

    scenario: str
    ends: frozenset[str]
    duration_factor: Pace = Pace.QUICK
    on_extend_failed: OnExtendFailed = OnExtendFailed.FALLBACK
    extension: str = ""
    high: bool = False

    @property
    def name(self) -> str:
        """For the report."""
        policy = "" if self.on_extend_failed is OnExtendFailed.FALLBACK else f" ({self.on_extend_failed})"
        return (self.scenario or "ok") + policy

    @property
    def delivers(self) -> bool:
        """Whether a clip must be in the store at the end."""
        return bool(self.ends & {"full", "fallback", "ExtensionFailed"})


def _all(end: str, scenarios: str, duration_factor: Pace = Pace.QUICK) -> list[Case]:
    return [Case(scenario, frozenset(end.split("|")), duration_factor) for scenario in scenarios.split()]


PLAIN = Case("", frozenset({"full"}))

CASES: tuple[Case, ...] = (
    # What the video becomes.
    *_all("fallback", "extend_failed extend_failed,shape=S1 extend_failed,shape=S2 extend_failed,shape=S7"),
    *_all("fallback", "extend_failed,failure_in_result_url extend_failed,inner_synonyms extend_failed,link_403"),
    *_all("GenerationFailed", "generate_failed generate_failed,failure_progress_100 generate_failed,shape=S2"),
    *_all("full", "late_success"),
    *_all("full", "task_lost,recovers task_lost,heals"),
    *_all("TaskLost", "task_lost task_lost_unrecognized task_lost_timeout task_lost_channel"),
    *_all("TaskLost", "task_lost_empty cancelled"),
    *_all("GenerationTimedOut", "never_finishes", Pace.SLOW),
    *_all("TaskLost|GenerationTimedOut", "task_missing task_missing,status=404", Pace.SLOW),
    # How a good submission is answered.
    *_all("full", "submit_flat submit_envelope submit_code_string submit_code_object submit_code_list submit_id_only"),
    *_all("full", "submit_delay,delay=30"),
    # Paid, and nobody says so.
    *_all("full", "submit_no_id submit_html submit_not_json submit_empty", Pace.DOUBT),
    *_all("full", "do_request_failed read_response_body_failed unmarshal_response_body_failed", Pace.DOUBT),
    *_all("full", "invalid_response new_api_panic fail_to_fetch_task submit_500 submit_502 submit_503", Pace.DOUBT),
    *_all("full", "submit_504 submit_520 submit_524 submit_reset submit_close submit_hang submit_half", Pace.DOUBT),
    *_all("full", "submit_delay,delay=150", Pace.DOUBT),
    *_all("fallback", "submit_reset,extend_failed", Pace.DOUBT),
    # The other world of the same symptom: nothing was made.
    *_all("full", "submit_reset,unpaid,times=1 submit_504,unpaid,times=1 redirect_307,times=1", Pace.DOUBT),
    *_all(
        "full", "submit_hang,unpaid,times=1 fail_to_fetch_task,unpaid,times=1 get_channel_failed,times=1", Pace.DOUBT
    ),
    # Twice in a row: two decisions, and resets between them.
    *_all("full", "submit_reset,unpaid,times=2 submit_504,unpaid,times=2 do_request_failed,unpaid,times=2", Pace.SLOW),
    # Refused, and sent again where that can help.
    *_all("SubmissionRefused", "refuse_400 refuse_400_new_api refuse_401 refuse_402 refuse_403 insufficient_quota"),
    *_all("SubmissionRefused", "refuse_413 refuse_415 refuse_422"),
    *_all("full", "rate_limited,times=2,retry_after=1 rate_limited,times=1,retry_after=date rate_limited,times=1"),
    *_all("full", "no_channel,times=1 build_request_failed,times=1 submit_521,times=1"),
    *_all("full", "submit_522,times=1 submit_523,times=2 submit_525,times=1 submit_526,times=1"),
    # Trouble while looking.
    *_all("full", "task_not_exist task_not_exist,status=404 query_401 query_403 query_429,retry_after=1 query_500"),
    *_all("full", "query_502 query_503 query_504 query_problem query_html query_not_json query_empty query_huge"),
    *_all("full", "query_reset query_close query_half query_delay,after=1 shape=S1 shape=S2 shape=S4 shape=S5"),
    *_all("full", "shape=S6 shape=S7"),
    *_all("full", "query_hang,polls=1", Pace.DOUBT),
    # Odd values.
    *_all("full", "progress_bare progress_int progress_float progress_empty progress_null progress_backwards"),
    *_all("full", "milliseconds missing_fields extra_fields null_fields unknown_status status_unknown status_empty"),
    *_all("full", "not_start inner_lags inner_synonyms no_first_url"),
    # Getting the video. `link_private` and `link_loopback` are left out: the run itself must allow loopback addresses.
    *_all("full", "short silent html_file,downloads=2 truncated,downloads=1 truncated_chunked,downloads=1"),
    *_all("full", "truncated_unframed,downloads=1 truncated_framed,downloads=1 download_reset,downloads=2"),
    *_all("full", "slow,drip=30 download_404,downloads=1 download_502,downloads=2 range_ignored,truncated,downloads=1"),
    *_all("full", "range_lying,truncated,downloads=1 range_content,truncated,downloads=1 no_content_route"),
    *_all("full", "content_502 content_redirect content_only result_url_only result_url_works"),
    *_all("full", "links_expired link_403 link_redirect"),
    *_all("full", "download_stall,downloads=1", Pace.DOUBT),
    Case("small", frozenset({"full"}), high=True),
    *_all("DeliveryFailed", "links_expired,no_content_route links_expired,content_redirect", Pace.SLOW),
    *_all("DeliveryFailed", "html_file extend_failed,links_expired", Pace.SLOW),
    # What a caller may want after a failed extension.
    Case("extend_failed,label=fail", frozenset({"ExtensionFailed"}), on_extend_failed=OnExtendFailed.FAIL),
    Case("extend_failed,label=ask", frozenset({"full", "fallback"}), on_extend_failed=OnExtendFailed.ASK),
    Case("extend_failed,label=retry", frozenset({"full"}), on_extend_failed=OnExtendFailed.RETRY),
    Case(
        "extend_failed,label=again",
        frozenset({"fallback"}),
        on_extend_failed=OnExtendFailed.RETRY,
        extension="generate_failed",
    ),
    Case(
        "extend_failed,label=refused",
        frozenset({"fallback"}),
        on_extend_failed=OnExtendFailed.RETRY,
        extension="refuse_422",
    ),
    Case(
        "extend_failed,label=doubt",
        frozenset({"full"}),
        Pace.DOUBT,
        on_extend_failed=OnExtendFailed.RETRY,
        extension="submit_reset",
    ),
)
"""Each is played about once in a long run; the other half of the generations is `PLAIN`."""
