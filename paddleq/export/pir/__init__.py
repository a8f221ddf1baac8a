"""Lower markers in a PIR program (`.json`)."""
