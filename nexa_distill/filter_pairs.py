"""Filtering teacher pairs: not in this version; the command says so and exits 2."""

from nexa_core.command import refuse

if __name__ == "__main__":
    refuse("Filtering teacher pairs", "Train on prepared pairs instead: nexa train --config configs/baseline.yaml")
