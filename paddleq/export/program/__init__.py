"""Read, edit and write a ProgramDesc (`.pdmodel` and `.pdiparams`)."""
