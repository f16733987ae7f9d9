"""The `attnlab` command: a file a family of commands, each with its options, its call and its words."""
