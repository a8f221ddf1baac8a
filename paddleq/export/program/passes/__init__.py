"""Passes that rewrite a ProgramDesc in place."""
