"""The Temporal workflows: what happens, in which order; everything here is deterministic.

A module here decides, waits and calls activities by their names. Input and output belong to `activities`, logic that
needs no Temporal to `longtake`; clocks, chance, the environment and a logger of one's own may not be used.
"""
