"""What carries out a training step: flat weights, precision, forward, backward and update."""
