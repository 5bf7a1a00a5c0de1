"""From files to batches: tokenizers, prepared folders, and a loader that resumes exactly."""
