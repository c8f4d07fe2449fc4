"""The main job: what is to be run, what has been, in which folder, with which verdict."""
