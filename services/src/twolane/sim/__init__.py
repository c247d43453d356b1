"""A discrete-event simulator of a twolane cluster that runs the live policy objects."""
