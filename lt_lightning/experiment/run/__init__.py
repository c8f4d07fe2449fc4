"""Running a job: its tasks, its trainings, their checkpoints, and what a terminal shows."""
