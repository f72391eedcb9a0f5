"""The steps of a generation, one module a step: each awaits activities and changes the state."""
