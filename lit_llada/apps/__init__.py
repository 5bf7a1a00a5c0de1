"""What one does with a trained model at a terminal: sample, converse, calibrate the sampler."""
