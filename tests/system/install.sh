#!/bin/sh
# Install the Debian packages that the system tests drive, if they are missing.
set -eu

missing=""
command -v chromium >/dev/null || missing="$missing chromium"
command -v prometheus >/dev/null || missing="$missing prometheus"
# Health checks of docker-compose.yml are run by these.
command -v busybox >/dev/null || missing="$missing busybox"
command -v pg_isready >/dev/null || missing="$missing postgresql-client"
# The gateway answers in Chinese, and screenshots are to show it.
[ -n "$(fc-list :lang=zh 2>/dev/null)" ] || missing="$missing fontconfig fonts-wqy-microhei"
[ -n "$missing" ] || exit 0

give_up() {
    echo "The system tests need programs that are not installed, and $1." >&2
    echo "Install them yourself, on Debian as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
}

command -v apt-get >/dev/null || give_up "there is no apt-get here"
as_root=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || give_up "only root may install them, and there is no sudo"
    as_root="sudo"
fi
echo "installing$missing"
log=$(mktemp)
# The lists may be old, or not there at all.
if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1
then
    tail -n 20 "$log" >&2
    rm -f "$log"
    give_up "apt-get could not install them (see above)"
fi
rm -f "$log"
