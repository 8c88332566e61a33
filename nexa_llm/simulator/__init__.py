"""A teacher that costs nothing: a local OpenAI-compatible server with seeded faults, which keeps a bill."""
