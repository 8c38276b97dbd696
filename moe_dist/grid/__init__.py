"""Grids: a paper's table as one job, cell by cell, and the record that its figures in docs are written from."""
