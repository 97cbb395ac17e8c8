"""Model servers of this host: what should run (the journal), what does, and the way from one to the other."""
