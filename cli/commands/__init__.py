"""The commands, one module each; `cli.app` declares their arguments."""
