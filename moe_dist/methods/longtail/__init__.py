"""Long-tailed recognition with branch networks: what its methods share, and ICL's rivals in one file each."""
