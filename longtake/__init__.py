"""longtake: a 15-second video from a paid, slow, failure-prone gateway, as one durable Temporal workflow."""

__version__ = "0.1.0"
