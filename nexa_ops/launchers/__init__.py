"""The schedulers that a training run can be handed to, a module for each."""
