"""Training in many processes: who they are, how they are launched, joined and watched, and how they sum."""
