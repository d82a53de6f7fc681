"""Archive in, run folder out. Refuses to know how a mask comes about."""
