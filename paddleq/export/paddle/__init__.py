"""Lower markers in a ProgramDesc (`.pdmodel`)."""
