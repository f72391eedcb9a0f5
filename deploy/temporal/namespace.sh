#!/bin/sh
# Create the namespace; `starter.py setup` then registers the search attributes in it. Safe to run again.
# Needs TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE, which the `temporal` CLI reads itself.
set -eu

RETENTION=${TEMPORAL_RETENTION:-30d}

# `again COMMAND...` retries: the server takes some seconds to be ready, and to know a new namespace everywhere.
again() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "gave up after $tries tries: $*" >&2; exit 1; }
        sleep 1
    done
}

again temporal operator cluster health
if ! temporal operator namespace describe >/dev/null 2>&1; then
    temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention "$RETENTION"
fi
again temporal operator search-attribute list >/dev/null
