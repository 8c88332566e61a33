"""`python -m nexa_train.tune` is `nexa tune`."""

from nexa_core.command import enter

enter("tune")
