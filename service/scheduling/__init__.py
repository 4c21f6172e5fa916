"""What happens by the clock: jobs are claimed and carried out, and what is over is ended."""
