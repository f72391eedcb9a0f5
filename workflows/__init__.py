"""What happens, in which order: deterministic, no input or output."""
