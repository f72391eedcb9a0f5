"""The steps of a generation, one module a step: each awaits activities and changes the state, then reports it.

What a step shows (`workflows.reporting`) and how long it may take (`workflows.options`) stands elsewhere. A step that
cannot go on raises `StepFailed`; whether the generation ends with it is decided in `workflows.generate_video`.
"""
