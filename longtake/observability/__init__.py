"""Logs, metrics, traces of HTTP exchanges, and the gauges of running generations."""
