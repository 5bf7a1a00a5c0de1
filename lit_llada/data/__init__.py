"""From prepared folders to batches, by a loader that resumes exactly."""
