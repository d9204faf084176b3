"""Long prompts and long replies: context windows and output limits."""
