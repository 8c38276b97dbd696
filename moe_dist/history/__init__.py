"""What runs left behind: listed, compared, cleaned."""
