"""What touches the world: thin Temporal activities around the domain in `longtake`."""
