"""What the heads of a model attend to, and what each does."""
