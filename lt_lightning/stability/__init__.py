"""Linear mode connectivity: whether trainings that part at a point end in one connected valley."""
