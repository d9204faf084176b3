"""Named renderings: what hosts really do to a conversation on its way to the model.

`changes` are small pure functions, `catalogue` gives them names and advice, `panel_design`
searches for the conversations that tell them apart. Every rendering goes through the tokenizer's
own `apply_chat_template`; nothing here knows of models, HTTP or verdicts.
"""

from __future__ import annotations
