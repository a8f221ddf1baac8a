"""The ``paddleq`` command."""
