"""What operators see: logs, metrics, spans of HTTP exchanges, gauges of running generations.

Belongs here: formats, redaction, and the list of all metrics.
Does not belong here: decisions. Nothing here changes what a generation does, and no secret gets out through here.
"""
