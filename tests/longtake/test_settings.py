"""The environment: every variable is read, explained and checked, and no value is ever repeated in an error."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from longtake.models import GenerationPolicy
from longtake.settings import PREFIX, Settings, SettingsProblem, setting_groups, variable_names

SECRET = "sk-7f3a9c-never-to-be-seen"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Ours alone, whatever the developer has set."""
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def load(environment: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        environment.setenv(f"{PREFIX}{name}", value)
    return Settings.load()


def problem(environment: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(SettingsProblem) as refusal:
        load(environment, **variables)
    return str(refusal.value)


GOOD_VALUES = {
    "GATEWAY_URL": "https://gateway.example",
    "GATEWAY_API_KEY": "a, b",
    "STORE_URL": "s3://bucket/prefix",
    "DATA_DIR": "/data",
    "EXPECTED_SECONDS": "200.5",
    "MIN_POLL_INTERVAL_SECONDS": "7",
    "OVERDUE_AFTER_MINUTES": "30",
    "GIVE_UP_AFTER_HOURS": "12",
    "HIDE_PROMPTS": "true",
    "SUBMIT_TIMEOUT_SECONDS": "60",
    "SUBMIT_WINDOW_MINUTES": "5",
    "SUBMIT_CONCURRENCY": "2",
    "IMAGE_TRANSFER": "data_uri",
    "DELIVERY_WINDOW_HOURS": "3",
    "LOST_GRACE_MINUTES": "4",
    "DECISION_DAYS": "0.5",
    "ON_DECISION_TIMEOUT": "wait",
    "RESUBMIT_NOT_CHARGED": "true",
    "CONSOLE_TOKEN": "token",
    "CONSOLE_USER": "2",
    "EXTEND_URL": "https://other.example",
    "EXTEND_API_KEY": "c",
    "EXTEND_PATH": "/v2/{remix_id}",
    "EXTEND_MODEL": "veo_4-extend",
    "EXTEND_RETRIES": "3",
    "ALLOW_PRIVATE_ADDRESSES": "true",
    "MAX_VIDEO_MEBIBYTES": "100",
    "BUILD_ID": "2026-11-22.abc",
    "ENCRYPTION_KEYS": "k1:" + "A" * 43 + "=",
    "REQUIRE_ENCRYPTION": "true",
    "CODEC_SERVER": "127.0.0.1:8081",
    "CODEC_ORIGINS": "http://127.0.0.1:8080",
    "CODEC_TOKEN": "token",
    "TEMPORAL_BINARY": "/usr/bin/temporal",
    "TEMPORAL_BINARY_CHECKSUM": "a" * 64,
    "TRACE_GATEWAY": "true",
    "METRICS_ADDRESS": "127.0.0.1:9464",
    "LOG_FORMAT": "json",
}

BAD_VALUES = {
    "EXPECTED_SECONDS": ["0", "-1", SECRET, "nan", "inf"],
    "MIN_POLL_INTERVAL_SECONDS": ["0", SECRET, "inf"],
    "OVERDUE_AFTER_MINUTES": ["0", SECRET, "inf"],
    "GIVE_UP_AFTER_HOURS": ["0", SECRET, "inf"],
    "SUBMIT_TIMEOUT_SECONDS": ["0", "901", SECRET],
    "SUBMIT_WINDOW_MINUTES": ["0", SECRET, "inf"],
    "SUBMIT_CONCURRENCY": ["0", "101", "1.5", SECRET],
    "DELIVERY_WINDOW_HOURS": ["0", SECRET, "inf"],
    "LOST_GRACE_MINUTES": ["0", SECRET, "inf"],
    "DECISION_DAYS": ["-1", SECRET, "inf"],
    "ON_DECISION_TIMEOUT": [SECRET],
    "RESUBMIT_NOT_CHARGED": ["perhaps", SECRET],
    "EXTEND_RETRIES": ["0", "11", SECRET],
    "ALLOW_PRIVATE_ADDRESSES": ["perhaps", SECRET],
    "MAX_VIDEO_MEBIBYTES": ["0", SECRET],
    "REQUIRE_ENCRYPTION": ["perhaps", "true"],
    "TRACE_GATEWAY": ["perhaps", SECRET],
    "METRICS_ADDRESS": ["9464", ":9464", "localhost:9464", "127.0.0.1", "127.0.0.1:0", "::1:9464", f"{SECRET}:1"],
    "BUILD_ID": [f"a b {SECRET}", "a" * 129],
    "ENCRYPTION_KEYS": [SECRET, f"k1:{SECRET}", f"k1:{SECRET}+==", ","],
    "CODEC_SERVER": [SECRET, f"http://{SECRET}", "127.0.0.1:"],
    "LOG_FORMAT": ["JSON", SECRET],
    "TEMPORAL_BINARY_CHECKSUM": [SECRET, "a" * 63],
    "IMAGE_TRANSFER": ["FILE", "data-uri", SECRET],
}


def test_every_variable_is_known_here_and_says_what_it_is_for() -> None:
    assert {name.removeprefix(PREFIX) for name in variable_names()} == set(GOOD_VALUES)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("missing", ["CONSOLE_TOKEN", "CONSOLE_USER"])
def test_submitting_again_by_itself_needs_the_task_list(environment: pytest.MonkeyPatch, missing: str) -> None:
    given = {"RESUBMIT_NOT_CHARGED": "true", "CONSOLE_TOKEN": "token", "CONSOLE_USER": "2"}
    assert load(environment, **given).resubmit_not_charged
    assert f"{PREFIX}RESUBMIT_NOT_CHARGED" in problem(environment, **{**given, missing: ""})


@pytest.mark.parametrize("name", GOOD_VALUES)
def test_every_variable_is_read(environment: pytest.MonkeyPatch, name: str) -> None:
    field = name.lower()
    needs = {
        "EXTEND_URL": {"EXTEND_API_KEY": "c"},
        "REQUIRE_ENCRYPTION": {"ENCRYPTION_KEYS": GOOD_VALUES["ENCRYPTION_KEYS"]},
        "RESUBMIT_NOT_CHARGED": {"CONSOLE_TOKEN": "token", "CONSOLE_USER": "2"},
    }
    before = getattr(Settings.load(), field)
    after = getattr(load(environment, **{name: GOOD_VALUES[name]}, **needs.get(name, {})), field)
    assert after != before


def test_all_of_them_together(environment: pytest.MonkeyPatch) -> None:
    settings = load(environment, **GOOD_VALUES)
    assert settings.store_location == "s3://bucket/prefix"
    assert settings.data_dir == Path("/data")
    assert settings.submit_timeout == timedelta(minutes=1)
    assert settings.allow_private_addresses is True
    assert settings.max_video_mebibytes == 100


def test_nothing_needs_to_be_set(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings.load()
    assert (settings.gateway_url, settings.gateway_api_key, settings.store_url) == (None, (), None)
    assert settings.data_dir == tmp_path / ".local/share/longtake"
    assert settings.store_location == (tmp_path / ".local/share/longtake/store").as_uri()


def test_data_folder_follows_the_desktop_standard(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert Settings.load().data_dir == tmp_path / "xdg/longtake"


def test_store_is_an_absolute_url_wherever_it_is_started(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.chdir(tmp_path)
    assert load(environment, DATA_DIR="~/there").store_location == (tmp_path / "there/store").as_uri()


@pytest.mark.parametrize(
    ("name", "value", "absolute"),
    [
        ("DATA_DIR", "here", "here"),
        ("DATA_DIR", ".", ""),
        ("STORE_URL", "store", "store"),
        ("STORE_URL", "./store", "store"),
        ("STORE_URL", "file:store", "store"),
        ("STORE_URL", "file://store", "store"),
        ("STORE_URL", "file://./store", "store"),
    ],
)
def test_a_path_that_depends_on_the_current_folder_is_refused(
    environment: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, absolute: str
) -> None:
    """From another folder the same key would meet another ledger, and be paid again."""
    environment.chdir(tmp_path)
    said = problem(environment, **{name: value})
    assert said.startswith(f"{PREFIX}{name}: ")
    assert str(tmp_path / absolute) in said, "it names what to set"


def test_a_relative_folder_of_the_desktop_standard_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_DATA_HOME", "xdg")
    environment.chdir(tmp_path)
    assert str(tmp_path / "xdg/longtake") in problem(environment)
    assert load(environment, DATA_DIR="/data").data_dir == Path("/data")


@pytest.mark.parametrize("value", ["/store", "~/store", "file:///store", "file:/store", "file://localhost/store"])
def test_an_absolute_store_is_taken(environment: pytest.MonkeyPatch, value: str) -> None:
    assert load(environment, STORE_URL=value).store_url is not None


def test_a_folder_that_is_typed_is_absolute_at_once(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.chdir(tmp_path)
    assert Settings.load().in_folder(Path("typed")).data_dir == tmp_path / "typed"


# --- The gateway -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "keys"),
    [("a", ["a"]), ("a,b", ["a", "b"]), (" a , b ,", ["a", "b"]), (",,", []), ("", []), ("  ", [])],
)
def test_several_keys_are_separated_by_commas(environment: pytest.MonkeyPatch, value: str, keys: list[str]) -> None:
    settings = load(environment, GATEWAY_API_KEY=value)
    assert [key.get_secret_value() for key in settings.gateway_api_key] == keys


def test_gateway_is_asked_for_only_by_who_needs_it(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsProblem) as refusal:
        Settings.load().require_gateway()
    assert str(refusal.value).startswith("set LONGTAKE_GATEWAY_URL and LONGTAKE_GATEWAY_API_KEY")
    with pytest.raises(SettingsProblem, match=r"^set LONGTAKE_GATEWAY_API_KEY:"):
        load(environment, GATEWAY_URL="https://gateway.example").require_gateway()
    url, keys = load(environment, GATEWAY_API_KEY="a,b").require_gateway()
    assert (url, len(keys)) == ("https://gateway.example", 2)


def test_keys_show_nowhere(environment: pytest.MonkeyPatch) -> None:
    settings = load(environment, GATEWAY_API_KEY=SECRET, CONSOLE_TOKEN=SECRET, EXTEND_API_KEY=SECRET)
    for shown in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.policy())):
        assert SECRET not in shown


def test_another_gateway_for_extensions_needs_a_key_of_its_own(environment: pytest.MonkeyPatch) -> None:
    ours = {"GATEWAY_URL": "https://gateway.example", "GATEWAY_API_KEY": SECRET}
    said = problem(environment, **ours, EXTEND_URL="https://other.example")
    assert said.startswith("LONGTAKE_EXTEND_API_KEY: ")
    settings = load(environment, EXTEND_URL="https://gateway.example/api")
    assert settings.retries_at_the_gateway


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LONGTAKE_GATEWAY_APIKEY", "LONGTAKE_GATEWAY_API_KEY"),
        ("LONGTAKE_GATEWAY_KEY", "LONGTAKE_GATEWAY_API_KEY"),
        ("LONGTAKE_EXPECTED_SECOND", "LONGTAKE_EXPECTED_SECONDS"),
        ("LONGTAKE_STOREURL", "LONGTAKE_STORE_URL"),
    ],
)
def test_misspelt_name_is_an_error_with_a_suggestion(environment: pytest.MonkeyPatch, name: str, meant: str) -> None:
    environment.setenv(name, SECRET)
    with pytest.raises(SettingsProblem) as refusal:
        Settings.load()
    assert str(refusal.value) == f"{name} is not a setting; did you mean {meant}?"


def test_name_like_no_other_is_an_error_without_a_suggestion(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LONGTAKE_QQQQQQQQQQQQQQQQQQ", "1")
    with pytest.raises(SettingsProblem, match=r"^LONGTAKE_Q+ is not a setting$"):
        Settings.load()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values])
def test_bad_value_is_named_and_never_repeated(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    said = problem(environment, **{name: value})
    assert said.startswith(f"LONGTAKE_{name}: ")
    assert SECRET not in said


def test_all_mistakes_are_reported_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LONGTAKE_TYPO", "1")
    said = problem(environment, EXPECTED_SECONDS="0", LOG_FORMAT=SECRET)
    for name in ("LONGTAKE_TYPO", "LONGTAKE_EXPECTED_SECONDS", "LONGTAKE_LOG_FORMAT"):
        assert name in said


@pytest.mark.parametrize("blank", ["", "  "])
@pytest.mark.parametrize("name", GOOD_VALUES)
def test_blank_is_absent(environment: pytest.MonkeyPatch, name: str, blank: str) -> None:
    """As an environment file or a compose file leaves it; a blank folder would be the current one."""
    defaults = Settings()
    assert load(environment, **{name: blank}) == defaults


# --- What the workflow gets ------------------------------------------------------------------------------------------


def test_defaults_are_the_payloads_own() -> None:
    by_setting = {"decision_window": timedelta(days=7)}  # payloads of before keep to "ends at once"
    assert Settings.load().policy() == GenerationPolicy().model_copy(update=by_setting)


def test_policy_is_the_settings_as_data(environment: pytest.MonkeyPatch) -> None:
    policy = load(environment, **GOOD_VALUES).policy()
    assert policy.schedule.expected == timedelta(seconds=200.5)
    assert policy.schedule.min_interval == timedelta(seconds=7)
    assert policy.overdue_after == timedelta(minutes=30)
    assert policy.give_up_after == timedelta(hours=12)
    assert policy.submit_timeout == timedelta(seconds=60)
    assert policy.submit_window == timedelta(minutes=5)
    assert policy.delivery_window == timedelta(hours=3)
    assert policy.lost_grace == timedelta(minutes=4)
    assert policy.decision_window == timedelta(hours=12)
    assert policy.wait_after_decision_timeout is True
    assert policy.extension_retries == 3


def test_extensions_are_not_retried_where_nothing_says_how(environment: pytest.MonkeyPatch) -> None:
    assert load(environment, EXTEND_RETRIES="5").policy().extension_retries == 0


def test_every_setting_belongs_to_one_group() -> None:
    grouped = [name for names in setting_groups().values() for name in names]
    assert len(setting_groups()) == 10
    assert sorted(grouped) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", ["STORE_URL", "DATA_DIR", "EXPECTED_SECONDS", "ENCRYPTION_KEYS", "EXTEND_MODEL"])
def test_a_value_that_is_not_utf8_is_named(environment: pytest.MonkeyPatch, name: str) -> None:
    told = problem(environment, **{name: os.fsdecode(b"/srv/longtak\xe9")})
    assert told.startswith(f"{PREFIX}{name}: ")
    assert "longtak" not in told
