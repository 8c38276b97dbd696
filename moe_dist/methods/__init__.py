"""Methods: one folder or file per paper or baseline, known to the rest by the protocol in base.py alone."""
