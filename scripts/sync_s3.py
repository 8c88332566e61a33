"""Syncing data/raw with remote storage: not in this version; the command says so and exits 2."""

from nexa_core.command import refuse

if __name__ == "__main__":
    refuse("Syncing with remote storage", "Copy your files into data/raw/ with the storage's own client.")
