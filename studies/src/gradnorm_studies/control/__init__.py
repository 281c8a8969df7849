"""One agent on several tasks of gymnasium."""
