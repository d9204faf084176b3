"""From a reply to rows of the ledger."""
