"""The update of the parameters: optimizers, schedules, clipping, averages."""
