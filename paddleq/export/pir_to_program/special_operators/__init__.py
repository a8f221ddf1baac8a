"""Operations that the operator table cannot express."""

from . import arithmetic, control_flow, filling, slices, structure

# PIR name -> function (converter, operation).
SPECIALS = {
    **{f"builtin.{each.__name__}": each
       for each in (structure.parameter, structure.combine, structure.split)},
    **{each.__name__: each
       for each in (structure.data, structure.fetch, structure.stack, filling.full,
                    filling.full_int_array, filling.full_with_tensor, filling.full_like,
                    filling.masked_fill, filling.assign_value, arithmetic.deformable_conv,
                    arithmetic.cast, arithmetic.shape64, arithmetic.arange, arithmetic.isclose,
                    arithmetic.swiglu, arithmetic.clip, slices.set_value,
                    structure.create_array, structure.array_length, structure.array_to_tensor)},
    "assign_value_": filling.assign_value,
    "allclose": arithmetic.isclose,
    **dict.fromkeys(("set_value_", "set_value_with_tensor", "set_value_with_tensor_"),
                    slices.set_value),
    "array_write_": structure.write_to_array,
    "array_read": structure.read_from_array,
    "if": control_flow.write_if,
    "while": control_flow.write_while,
}
