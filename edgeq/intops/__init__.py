"""Integer kernels, one op family a file: `OPS = {op_type: function}`."""
