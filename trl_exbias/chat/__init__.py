"""Rows of a data set as the model reads them: conversations, chat templates, prompts, and what can be wrong with them."""
