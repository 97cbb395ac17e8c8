"""Which backend and quantization is best on a machine: a pure core without I/O or clock."""
