"""Trajectories with the teacher's subset a state, on disk, so that a teacher is paid for once."""
