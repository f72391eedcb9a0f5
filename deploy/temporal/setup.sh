#!/bin/sh
# Make the namespace and the search attributes that longtake's workflows set. Can be run again.
# Wants TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE, which the `temporal` CLI reads itself.
set -eu

RETENTION=${TEMPORAL_RETENTION:-30d}

# `again COMMAND...`: the server needs some seconds to be ready, and then some to know a new namespace everywhere.
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
# One at a time: given several names and one type, the CLI makes the first and says nothing of the others.
# An attribute that is there already, with the same type, is left alone.
for name in VideoModel VideoStage VideoOutcome VideoAttention VideoPaid GatewayTaskId; do
    again temporal operator search-attribute create --name "$name" --type Keyword
done
