"""What may be asked for: the rules of a request, its images, its prompts. Nothing here knows a gateway or a store."""
