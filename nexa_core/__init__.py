"""The ground that every other package stands on; nothing in here imports torch."""
