"""The commands, one module for each or for a few kindred ones: a coroutine that returns the exit code.

`cli.app` declares their arguments and imports them when they run. What several commands share belongs in `cli.session`,
`cli.results` or `cli.output`.
"""
