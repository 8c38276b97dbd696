"""EDCWRN (Golzari Oskouei, Balafar and Motamed, Applied Intelligence 2022): deep clustering; DEC and IDEC beside it."""
