"""Two small methods that use every part of the seam, as an installed package of somebody's own would bring them."""
