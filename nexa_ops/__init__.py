"""What spans a run: packages, verification, leaderboard, the state of a machine."""
