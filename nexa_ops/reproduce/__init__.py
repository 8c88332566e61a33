"""Running a recorded run again, and saying how equal the two are."""
