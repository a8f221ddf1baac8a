"""Refusing an operation that has no legacy counterpart."""

from ...errors import UnsupportedOperatorError


def unsupported(operation, why):
    """The error for an operation that cannot be converted."""
    where = operation.attributes.get("struct_name")
    where = where.value if where else None
    return UnsupportedOperatorError(
        f"the operator {operation.name}{f' in {where}' if where else ''} {why}; see the page "
        "on .pdmodel from PIR in the documentation for what converts and how to add an "
        "operator", operation.name, where)
