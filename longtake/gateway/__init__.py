"""The HTTP boundary to the gateway: `client` speaks, `wire` reads, `errors` says what went wrong."""
