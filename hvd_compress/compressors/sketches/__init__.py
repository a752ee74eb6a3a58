"""The sketches: small tables, linear in the vector, in which its large coordinates are found."""
