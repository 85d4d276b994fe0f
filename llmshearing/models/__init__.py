"""What a decoder is and what a mask does to it: shapes, families, counts, and the one definition of a cut."""
