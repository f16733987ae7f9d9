"""What is measured, a module a part, and what these share."""
